"""Does word order matter to it? True against false captions of one image (ARO; Yuksekgonul et al., ICLR 2023)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from manyviews import foreign
from manyviews.backbones import Encoding, views_of
from manyviews.distributed import LOCAL
from manyviews.evaluation.features import frozen, prepared
from manyviews.evaluation.joint import JointProtocol, embed_texts
from manyviews.evaluation.protocol import Result

LAST = ("order",)
"""Kinds in which ARO puts the true caption first, so that a tie counts as right; in the others it stands last."""


@dataclass
class Composition(JointProtocol):
    """Accuracy of choosing the true caption of an image among false ones of the same words, for each kind.

    Samples have `cases` in their `.json`: {"true": caption, KIND: false caption or list of them, ...}. Scores are
    those by which an image chooses a text. Ties as ARO breaks them: the candidate that stands first wins; the true
    one stands last in the kinds `attribute` and `relation` (a tie is wrong), first in `order` (a tie is right). Their
    number is reported. Beside every kind stands what a model without eyes reaches: a bigram model of the training
    captions that takes the likelier one.

    Attributes:
        split: of the data module's shards that is asked about.
        smoothing: added to every count of the bigram model.
    """

    split: str = "val"
    smoothing: float = 0.1
    name = "composition"

    @override
    def check(self, batch: dict[str, Any]) -> None:
        super().check(batch)
        if "cases" not in batch:
            raise ValueError("Composition needs samples with `cases` in their .json: a true caption and false ones")

    @torch.no_grad()
    @override
    def measure(self, module: Any, data: Any) -> Result:
        tallies: dict[str, list[list[float]]] = defaultdict(list)
        blind = Bigrams(_captions(data), self.smoothing)
        for batch in prepared(module, data, self.split, LOCAL):  # every rank all of it: such sets are small
            if "cases" not in batch:
                self.check(batch)
            kinds = sorted({kind for cases in batch["cases"] for kind in cases if kind != "true"})
            for kind in kinds:
                rows = [i for i, cases in enumerate(batch["cases"]) if kind in cases and batch["weight"][i] > 0]
                if not rows:
                    continue
                images = module.embed_image(views_of(batch)[0][rows])
                options = [arranged(kind, batch["cases"][i]) for i in rows]
                scores = choose(module, data, images, [texts for texts, _ in options])
                for score, (texts, true) in zip(scores, options, strict=True):
                    says = torch.tensor([blind(text) for text in texts])
                    tallies[kind].append([*verdict(score, true), verdict(says, true)[0]])
        found: dict[str, float] = {}
        details: dict[str, int] = {}
        for kind, tally in sorted(tallies.items()):
            right, ties, text_only = torch.tensor(tally, dtype=torch.float64).sum(0).tolist()
            found |= {kind: right / len(tally), f"{kind}_text_only": text_only / len(tally)}
            details |= {f"{kind}_cases": len(tally), f"{kind}_ties": int(ties)}
        return Result(found, details)


def arranged(kind: str, cases: Mapping[str, Any]) -> tuple[list[str], int]:
    """The candidates in ARO's order, and the place of the true one."""
    false = [cases[kind]] if isinstance(cases[kind], str) else list(cases[kind])
    return ([cases["true"], *false], 0) if kind in LAST else ([*false, cases["true"]], len(false))


def verdict(scores: Tensor, true: int) -> list[float]:
    """Right (1) or wrong (0), and whether the true one shares the highest score."""
    best = scores.max()
    return [float(int(scores.argmax()) == true), float(bool(scores[true] == best and (scores == best).sum() > 1))]


def choose(module: Any, data: Any, images: Encoding, options: list[list[str]]) -> list[Tensor]:
    """For each image the scores by which it chooses among its own texts."""
    texts = embed_texts(module, data, [text for candidates in options for text in candidates])
    ends = list(accumulate(len(candidates) for candidates in options))
    cuts = [slice(end - len(candidates), end) for end, candidates in zip(ends, options, strict=True)]
    return [
        module.similarity(images.rows(slice(i, i + 1)), texts.rows(cut))[0][0].float().cpu()
        for i, cut in enumerate(cuts)
    ]


class Bigrams:
    """A model without eyes: mean log-probability of a caption's words, each given the one before it.

    Args:
        captions: it is counted on. smoothing: added to every count.
    """

    def __init__(self, captions: Iterable[str], smoothing: float) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.first: Counter[str] = Counter()
        words = set()
        for caption in captions:
            said = self._words(caption)
            words.update(said)
            self.pairs.update(pairwise(said))
            self.first.update(said[:-1])
        self.smoothing, self.size = smoothing, max(1, len(words))

    def __call__(self, caption: str) -> float:
        """Log-probability per word."""
        said = self._words(caption)
        steps = [
            math.log((self.pairs[a, b] + self.smoothing) / (self.first[a] + self.smoothing * self.size))
            for a, b in pairwise(said)
        ]
        return sum(steps) / len(steps)

    @staticmethod
    def _words(caption: str) -> list[str]:
        return ["<s>", *caption.lower().replace(",", " ,").split(), "</s>"]


def _captions(data: Any) -> list[str]:
    """All captions of train, each as often as it stands there.

    Raises:
        ValueError: if there are none.
    """
    found: list[str] = []
    for batch in data.evaluation_loader("train", world=1, rank=0):
        for weight, captions in zip(batch["weight"].tolist(), batch["captions"], strict=True):
            found += captions if weight else []
    if not found:
        raise ValueError("composition needs captions in train, for the text-only model beside it")
    return found


@dataclass
class ARO(JointProtocol):
    """The benchmark's own files: VG-Relation, VG-Attribution, or captions with perturbations, scored as it does.

    Scores are `aro_macro`, the mean over relations or attribute pairs, and `aro`, over cases; beside each what a bigram
    model of the training captions reaches. Ties stand in the details.

    Attributes:
        cases: JSON list of {image_path, true_caption, false_caption, and relation_name or attributes, bbox_x, bbox_y,
            bbox_w, bbox_h} (the image is cropped to the box), or of {image_path, captions}, the true one first.
        images: the folder image_path is in.
        excluded: relations that the macro mean leaves out (the benchmark excludes symmetric ones).
        fewest: cases an attribute pair must have to take part in the macro mean.
        smoothing: added to every count of the bigram model.
    """

    cases: str
    images: str = "."
    excluded: tuple[str, ...] = ()
    fewest: int = 25
    smoothing: float = 0.1
    name = "aro"
    texts = False

    @property
    @override
    def title(self) -> str:
        return f"aro_{Path(self.cases).stem}"

    @torch.no_grad()
    def measure(self, module: Any, data: Any) -> Result:
        """The numbers of the file.

        Raises:
            ValueError: naming the entry that lacks something.
        """
        blind = Bigrams(_captions(data), self.smoothing)
        found: dict[str, list[list[float]]] = defaultdict(list)
        with frozen(module):
            for number, case in enumerate(foreign.read_json(Path(self.cases), list[foreign.Unchecked])):
                try:
                    texts, true, group = _read(case)
                    view = data.of_picture(_crop(data.picture(_below(self.images, case["image_path"])), case))
                except (KeyError, OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
                    raise ValueError(f"{self.cases}: entry {number} cannot be used: {error!r}") from error
                score = choose(module, data, module.embed_image(view.to(module.device)), [texts])[0]
                says = torch.tensor([blind(text) for text in texts])
                found[group].append([*verdict(score, true), verdict(says, true)[0]])
        if not found:
            raise ValueError(f"{self.cases}: no cases in it")
        means = {group: torch.tensor(rows, dtype=torch.float64).mean(0) for group, rows in found.items()}
        kept = [means[g] for g, rows in found.items() if g not in self.excluded and self._enough(g, rows)]
        every = torch.tensor([row for rows in found.values() for row in rows], dtype=torch.float64)
        macro = torch.stack(kept).mean(0) if kept else every.new_full((3,), float("nan"))
        scores = {"aro_macro": macro[0], "aro": every[:, 0].mean()}
        scores |= {"aro_macro_text_only": macro[2], "aro_text_only": every[:, 2].mean()}
        details = {
            "cases": len(every),
            "groups": len(found),
            "groups_in_macro": len(kept),
            "ties": int(every[:, 1].sum()),
        }
        return Result({name: score.item() for name, score in scores.items()}, details)

    def _enough(self, group: str, rows: Sequence[Any]) -> bool:
        """Relations always; pairs of attributes with enough cases."""
        return not group.startswith("(") or len(rows) >= self.fewest


def _read(case: Mapping[str, Any]) -> tuple[list[str], int, str]:
    """Candidates, the true one's place, and what the case is averaged with."""
    if "captions" in case:
        foreign.check(case["captions"], list[str], "captions")
        return list(case["captions"]), 0, "order"
    texts = [case["false_caption"], case["true_caption"]]
    foreign.check(texts, list[str], "false_caption and true_caption")
    if "relation_name" in case:
        return texts, 1, str(case["relation_name"])
    return texts, 1, f"({', '.join(case['attributes'])})"


def _below(folder: str, name: str) -> Path:
    """A file that a list names, which lies below a folder.

    Raises:
        ValueError: if it does not.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"image_path {name!r} leads out of the folder of the images")
    return Path(folder) / name


def _crop(picture: Any, case: Mapping[str, Any]) -> Any:
    if "bbox_x" not in case:
        return picture
    x, y, width, height = (int(case[f"bbox_{name}"]) for name in ("x", "y", "w", "h"))
    if min(width, height) < 1 or max(map(abs, (x, y, width, height))) > 2 * max(picture.shape):
        raise ValueError(f"the box {x}, {y}, {width}, {height} does not fit the image {picture.shape}")
    # As the benchmark's own code does: what lies outside is black.
    return np.asarray(Image.fromarray(picture).crop((x, y, x + width, y + height)))
