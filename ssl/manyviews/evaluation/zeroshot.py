"""Zero-shot classification: class names as a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyviews import foreign
from manyviews.backbones import Encoding
from manyviews.evaluation.accuracy import classified
from manyviews.evaluation.joint import JointProtocol, embed_texts
from manyviews.evaluation.protocol import Result


@dataclass
class ZeroShot(JointProtocol):
    """Class names as a classifier: an image belongs to the class whose prompts are nearest.

    A class's prompts are embedded, brought to length 1, averaged over the templates, and brought to length 1 again; a
    method that compares tokens averages its similarities over the templates instead. Ties go to the earlier class.

    Attributes:
        bank: `plain` (the templates below), `openai` (80) or `simple` (7), both for photos, or a JSON file
            {"templates": ["a photo of a {c}", ...], "classnames": {"label": "words"}}, of which either may be missing.
            Without a name of its own a class is called by its label, underscores as spaces; `imagenet` numbers by
            open_clip's names.
        k: an image counts as right if its class is among the k best.
    """

    bank: str = "plain"
    k: tuple[int, ...] = (1, 5)
    name = "zeroshot"
    labels = True

    @torch.no_grad()
    def measure(self, module: Any, data: Any) -> Result:  # noqa: D102
        names, templates = self.read(data.classes)
        if not names:
            raise ValueError("zero-shot needs names of the classes: data with a label field that names them")
        texts = None  # a method may bring a classifier of its own: learned prompts
        if not hasattr(module, "class_scores"):
            texts = self._classifier(module, data, names, templates)
        classes = len(names)
        right, confusion, ties = classified(
            module, data, lambda view: self._scores(module, module.embed_image(view), texts, classes), classes, self.k
        )
        images = int(confusion.sum())
        of_class = confusion.sum(1)
        per_class = {  # by label: two classes may be called the same
            label: (confusion[c, c] / of_class[c]).item() for c, label in enumerate(data.classes) if of_class[c]
        }
        found = {f"zeroshot_top{k}": (right[i] / images).item() for i, k in enumerate(self.k) if k < classes or i == 0}
        details = {
            "images": images, "classes": classes, "templates": templates, "ties": int(ties), "per_class": per_class,
            "largest_class": (of_class.max() / images).item(),
        }  # fmt: skip
        return Result(found, details, confusion)

    def ready(self, module: Any, data: Any) -> None:  # noqa: D102
        super().ready(module, data)
        if not self.read(data.classes)[0]:
            raise ValueError("zero-shot needs names of the classes: data with a label field that names them")

    def read(self, labels: list[str]) -> tuple[list[str], list[str]]:
        """Class names and templates of the bank.

        Raises:
            ValueError: if it cannot be read, naming what is missing.
        """
        if self.bank in ("openai", "simple"):
            import open_clip

            made = open_clip.OPENAI_IMAGENET_TEMPLATES if self.bank == "openai" else open_clip.SIMPLE_IMAGENET_TEMPLATES
            numbers = len(labels) == 1000 and all(label.isdecimal() for label in labels)
            names = [open_clip.IMAGENET_CLASSNAMES[int(label)] for label in labels] if numbers else labels
            return [name.replace("_", " ") for name in names], [template("{c}") for template in made]
        bank: dict[str, Any] = {}
        if self.bank != "plain":
            if not Path(self.bank).is_file():
                raise ValueError(f"zero-shot bank {self.bank!r}: expected plain, openai, simple, or a JSON file")
            bank = foreign.read_json(Path(self.bank), {"templates": list[str], "classnames": dict[str, str]})
            strange = bank.get("classnames", {}).keys() - set(labels) if labels else set()
            if strange:
                raise ValueError(f"{self.bank}: no class is called {sorted(strange)[0]!r} here")
        templates = bank.get("templates", ["{c}", "a {c}", "a picture of a {c}"])
        named = bank.get("classnames", {})
        return [named.get(label, label.replace("_", " ")) for label in labels], list(templates)

    @staticmethod
    def _classifier(module: Any, data: Any, names: list[str], templates: list[str]) -> Encoding:
        """One text a class, or where tokens are compared every template of every class."""
        texts = embed_texts(module, data, [template.replace("{c}", name) for name in names for template in templates])
        if texts.tokens is not None:
            return texts
        pooled = texts.pooled.view(len(names), len(templates), -1).mean(1)
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
