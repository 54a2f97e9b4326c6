"""Zero-shot classification: class names as a classifier."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from manyviews import foreign
from manyviews.backbones import Encoding
from manyviews.evaluation.accuracy import classified
from manyviews.evaluation.joint import JointProtocol, embed_texts
from manyviews.evaluation.protocol import Result
from manyviews.names import meant

logger = logging.getLogger(__name__)

SLOT = re.compile(r"\{c?\}")
"""Where a template has the name of the class."""


@dataclass
class ZeroShot(JointProtocol):
    """Class names as a classifier: an image belongs to the class whose prompts are nearest.

    A class's prompts are embedded, brought to length 1, averaged over the templates, and brought to length 1 again; a
    method that compares tokens averages its similarities over the templates instead. Ties go to the earlier class.

    Attributes:
        bank: `plain` (the templates below), `openai` (80) or `simple` (7), both for photos, or a JSON file
            {"templates": ["a photo of a {c}", ...], "classnames": {"label": "words"}}, of which either may be missing.
            The class stands where a template has `{}` or `{c}`; templates may also be {"label": [...]}, for each class
            its own, and need no place for its name then. Without a name of its own a class is called by its label,
            underscores as spaces; `imagenet` numbers by open_clip's names.
        k: an image counts as right if its class is among the k best.
    """

    bank: str = "plain"
    k: tuple[int, ...] = (1, 5)
    name = "zeroshot"
    labels = True
    texts: ClassVar[bool] = False  # the samples need none

    @torch.no_grad()
    @override
    def measure(self, module: Any, data: Any) -> Result:
        self.ready(module, data)
        names, prompts = self.read(data.classes)
        texts = None  # a method may bring a classifier of its own: learned prompts
        if not hasattr(module, "class_scores"):
            texts = self._classifier(module, data, prompts)
        classes = len(names)
        right, confusion, ties, samples = classified(
            module, data, lambda view: self._scores(module, module.embed_image(view), texts, classes), classes, self.k
        )
        images = int(confusion.sum())
        of_class = confusion.sum(1)
        per_class = {  # by label: two classes may be called the same
            label: (confusion[c, c] / of_class[c]).item() for c, label in enumerate(data.classes) if of_class[c]
        }
        found = {f"zeroshot_top{k}": (right[i] / images).item() for i, k in enumerate(self.k) if k < classes or i == 0}
        details = {
            "images": images, "classes": classes, "prompts": prompts[0], "ties": int(ties), "per_class": per_class,
            "largest_class": (of_class.max() / images).item(),
        }  # fmt: skip
        chance = {f"zeroshot_top{k}": min(1.0, k / classes) for k in self.k if f"zeroshot_top{k}" in found}
        return Result(found, details, confusion, chance, dict.fromkeys(found, int(samples)))

    @property
    @override
    def title(self) -> str:
        return self.name if self.bank == "plain" else f"{self.name}_{Path(self.bank).stem}"

    @override
    def describe(self) -> dict[str, Any]:
        file = Path(self.bank)
        known = {"bank_sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file.is_file() else {}
        return super().describe() | known

    @override
    def ready(self, module: Any, data: Any) -> None:
        super().ready(module, data)
        if hasattr(module, "class_scores") and self.bank != "plain":
            raise ValueError(
                f"{type(module).__name__} classifies by prompts of its own; bank {self.bank!r} is not used"
            )
        if not self.read(data.classes)[0]:
            raise ValueError("zero-shot needs names of the classes: data with a label field that names them")

    def read(self, labels: list[str]) -> tuple[list[str], list[list[str]]]:
        """Names of the classes, and the prompts of each, as many for every class.

        Raises:
            ValueError: if the bank cannot be read, naming what is missing.
        """
        if self.bank in ("openai", "simple"):
            import open_clip

            made = open_clip.OPENAI_IMAGENET_TEMPLATES if self.bank == "openai" else open_clip.SIMPLE_IMAGENET_TEMPLATES
            numbers = len(labels) == 1000 and all(label.isdecimal() for label in labels)
            names = [open_clip.IMAGENET_CLASSNAMES[int(label)] for label in labels] if numbers else labels
            names = [name.replace("_", " ") for name in names]
            return names, [[template(name) for template in made] for name in names]
        bank: dict[str, Any] = {}
        if self.bank != "plain":
            if not Path(self.bank).is_file():
                raise ValueError(f"zero-shot bank {self.bank!r}: expected plain, openai, simple, or a JSON file")
            kinds = {"templates": list[str] | dict[str, list[str]], "classnames": dict[str, str]}
            bank = foreign.read_json(Path(self.bank), kinds)
        named = bank.get("classnames", {})
        templates: list[str] | dict[str, list[str]] = bank.get("templates", ["{c}", "a {c}", "a picture of a {c}"])
        of_class = templates if isinstance(templates, dict) else dict.fromkeys(labels, templates)
        for given in (named, templates if isinstance(templates, dict) else {}):
            if labels and (strange := sorted(given.keys() - set(labels))):
                raise ValueError(f"{self.bank}: no class is called {strange[0]!r} here" + meant(strange[0], labels))
        if missing := [label for label in labels if label not in of_class]:
            raise ValueError(f"{self.bank}: no templates for class {missing[0]!r}")
        if not templates or len({len(of_class[label]) for label in labels} | {0}) > 2 or not all(of_class.values()):
            raise ValueError(f"{self.bank}: every class needs templates, and as many as the others")
        if isinstance(templates, list):
            for template in templates:
                if not SLOT.search(template):
                    raise ValueError(
                        f"{self.bank}: template {template!r} has no place for the class: write {{}} or {{c}}"
                    )
        names = [named.get(label, label.replace("_", " ")) for label in labels]
        prompts = [
            [name.join(SLOT.split(template)) for template in of_class[label]]
            for label, name in zip(labels, names, strict=True)
        ]
        return names, prompts

    @staticmethod
    def _classifier(module: Any, data: Any, prompts: list[list[str]]) -> Encoding:
        """One text a class, or where tokens are compared every prompt of every class."""
        if len(prompts) > 1 and (alike := _alike(data, prompts)):
            logger.warning(
                "zero-shot: the prompts of %d classes read like those of others, named alike or cut to the context of "
                "the tokenizer: the earlier class gets their images", alike,
            )  # fmt: skip
        texts = embed_texts(module, data, [prompt for of_class in prompts for prompt in of_class])
        if texts.tokens is not None:
            return texts
        pooled = texts.pooled.view(len(prompts), len(prompts[0]), -1).mean(1)
        return Encoding(torch.nn.functional.normalize(pooled, dim=1))

    @staticmethod
    def _scores(module: Any, images: Encoding, texts: Encoding | None, classes: int) -> Tensor:
        """(B, classes)."""
        if texts is None:
            own: Tensor = module.class_scores(images).float()
            if own.shape[1] != classes:
                raise ValueError(f"the method classifies {own.shape[1]} classes, the label field has {classes}")
            return own
        scores: Tensor = module.similarity(images, texts)[0].float()
        return scores.view(len(scores), classes, -1).mean(2)


def _alike(data: Any, prompts: list[list[str]]) -> int:
    """How many classes have the same tokens as another one, in all prompts."""
    first = [row.tobytes() for row in data.tokens([of_class[0] for of_class in prompts]).numpy()]
    often = Counter(first)
    suspects = [of_class for of_class, read in zip(prompts, first, strict=True) if often[read] > 1]
    whole = Counter(data.tokens(of_class).numpy().tobytes() for of_class in suspects)
    return sum(count for count in whole.values() if count > 1)
