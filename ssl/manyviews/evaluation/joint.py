"""Protocols in the joint space of images and texts: zero-shot classification and retrieval, sharded over ranks."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.backbones import Encoding, views_of
from manyviews.distributed import Gather
from manyviews.evaluation.features import Features, frozen, prepared
from manyviews.evaluation.protocol import Protocol, Result

CHUNK = 256
"""Texts, and rows of scores, at a time; no result depends on it."""


class JointProtocol(Protocol):
    """Asks a method for `embed_image`, `embed_text` and `similarity`, and a data module for `tokens`."""

    labels: ClassVar[bool] = False
    joint: ClassVar[bool] = True
    texts: ClassVar[bool] = True
    """Whether samples must have texts."""

    @abstractmethod
    def measure(self, module: Any, data: Any) -> Result:
        """The numbers of the val split; called on every rank, the same result on each."""

    def ready(self, module: Any, data: Any) -> None:
        """Raises ValueError before training if the method or the data cannot be measured."""
        if not hasattr(module, "embed_image"):
            raise ValueError(f"{type(self).__name__} needs a method with texts, not {type(module).__name__}")

    def evaluate(self, train: Features, val: Features) -> Result:
        """Frozen features are not enough here."""
        raise TypeError(f"{type(self).__name__} needs the method's towers: call measure(method, data)")

    def check(self, batch: dict[str, Any]) -> None:  # noqa: D102
        super().check(batch)
        if self.texts and "text" not in batch:
            raise ValueError(f"{type(self).__name__} needs texts: set data.text to viewshards.Captions")


def joined(parts: list[Encoding]) -> Encoding:
    """Encodings one after the other."""
    if parts[0].tokens is None:
        return Encoding(torch.cat([part.pooled for part in parts]))
    tokens = torch.cat([part.tokens for part in parts if part.tokens is not None])
    masks = [part.token_mask for part in parts if part.token_mask is not None]
    return Encoding(torch.cat([part.pooled for part in parts]), tokens, torch.cat(masks) if masks else None)


def part_of(encoding: Encoding, rows: slice | Tensor) -> Encoding:
    """Some rows of an Encoding."""
    return Encoding(
        encoding.pooled[rows],
        None if encoding.tokens is None else encoding.tokens[rows],
        None if encoding.token_mask is None else encoding.token_mask[rows],
        encoding.prefix_tokens,
    )


def gathered(encoding: Encoding, gather: Gather) -> Encoding:
    """The encodings of all ranks, in rank order."""
    if gather.world == 1:
        return encoding
    rows = gather(len(encoding.pooled))
    mask = encoding.token_mask
    return Encoding(
        rows.gather(encoding.pooled),
        None if encoding.tokens is None else rows.gather(encoding.tokens),
        None if mask is None else rows.gather(mask.byte()).bool(),
        encoding.prefix_tokens,
    )


def finite(scores: Tensor) -> Tensor:
    """The scores, if they are numbers: nothing compares with NaN, so that it would count as the best.

    Raises:
        FloatingPointError: if they are not.
    """
    if not bool(torch.isfinite(scores).all()):
        raise FloatingPointError("scores of images and texts are not finite: the weights have diverged")
    return scores


@torch.no_grad()
def embed_texts(module: Any, data: Any, texts: list[str]) -> Encoding:
    """The texts in the joint space, by the tokenizer of training."""
    with frozen(module):
        ids = [data.tokens(texts[i : i + CHUNK]).to(module.device) for i in range(0, len(texts), CHUNK)]
        return joined([module.embed_text(part) for part in ids])


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
            bank = json.loads(Path(self.bank).read_text())
            unknown = bank.keys() - {"templates", "classnames"}
            strange = set(bank.get("classnames", {})) - set(labels) if labels else set()
            if unknown or strange:
                raise ValueError(f"{self.bank}: nothing is called {sorted(unknown or strange)[0]!r} here")
        templates = bank.get("templates", ["{c}", "a {c}", "a picture of a {c}"])
        named = bank.get("classnames", {})
        return [named.get(label, label.replace("_", " ")) for label in labels], list(templates)

    @staticmethod
    def _classifier(module: Any, data: Any, names: list[str], templates: list[str]) -> Encoding:
        """One text a class, or where tokens are compared every template of every class."""
        texts = embed_texts(module, data, [template.format(c=name) for name in names for template in templates])
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


@torch.no_grad()
def classified(
    module: Any, data: Any, scores: Callable[[Tensor], Tensor], classes: int, k: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of val over all ranks: right answers among the k best, confusion (C, C), and how many ties there were.

    Args:
        scores: a view (B, ..) to (B, C). Ties go to the earlier class; every natural view counts.

    Raises:
        ValueError: if no sample has a label.
    """
    gather = distributed.current()
    right = torch.zeros(len(k), dtype=torch.float64)
    confusion, ties = torch.zeros(classes * classes, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for batch in prepared(module, data, "val", gather):
        label = batch["label"].to(module.device)
        keep = (batch["weight"].to(module.device) > 0) & (label >= 0)
        for view in views_of(batch):
            found = finite(scores(view)[keep])
            own = found.gather(1, label[keep, None])
            place = torch.arange(classes, device=found.device)
            rank = ((found > own) | ((found == own) & (place < label[keep, None]))).sum(1)
            right += torch.stack([(rank < best).sum() for best in k]).double().cpu()
            ties += ((found == own).sum(1) > 1).sum().cpu()
            best = found.argmax(1).cpu() + label[keep].cpu() * classes
            confusion += torch.bincount(best, minlength=classes * classes)
    right, confusion, ties = gather.sum(right), gather.sum(confusion).view(classes, classes), gather.sum(ties)
    if not confusion.sum():
        raise ValueError("classification needs labels, and no sample of the val split has one")
    return right, confusion, ties


@dataclass
class Accuracy(JointProtocol):
    """Top-1 of a method that classifies by itself (`Classifier`), on val; every natural view counts."""

    name = "accuracy"
    labels = True
    texts = False

    def ready(self, module: Any, data: Any) -> None:  # noqa: D102
        if not hasattr(module, "class_scores") or not hasattr(module, "classes"):
            raise ValueError(f"{type(module).__name__} does not classify: train manyviews.methods.Classifier on it")

    def measure(self, module: Any, data: Any) -> Result:  # noqa: D102
        self.ready(module, data)
        classes = int(module.classes)

        def scores(view: Tensor) -> Tensor:
            found: Tensor = module.class_scores(Encoding.of(module.backbone(view))).float()
            return found

        right, confusion, ties = classified(module, data, scores, classes, (1,))
        top = (right[0] / confusion.sum()).item()
        return Result({"accuracy": top}, {"samples": int(confusion.sum()), "ties": int(ties)}, confusion)


@dataclass
class TextRetrieval(JointProtocol):
    """R@k of captions by an image and of images by a caption, on val.

    image to text: a hit if any caption of the image's sample is among the k best; text to image: if any natural view
    of the caption's sample is. Known duplicates (equal `group`) count as right. Ties: an equal score counts against
    the query if its item stands earlier.

    Attributes:
        k: the ranks that are reported.
    """

    k: tuple[int, ...] = (1, 5, 10)
    name = "text_retrieval"

    @torch.no_grad()
    def measure(self, module: Any, data: Any) -> Result:  # noqa: D102
        gather = distributed.current()
        (images, image_of), (texts, text_of), alike = self._embedded(module, data, gather)
        found = {
            "i2t": (images, image_of, texts, text_of, True),
            "t2i": (texts, text_of, images, image_of, False),
        }
        scores: dict[str, float] = {}
        details: dict[str, Any] = {"images": len(image_of), "captions": len(text_of)}
        for name, (queries, of_query, gallery, of_item, first) in found.items():
            ranks = self._ranks(module, queries, of_query, gallery, of_item, alike, first, gather)
            for k in self.k:
                scores[f"{name}_r{k}"] = (ranks < k).double().mean().item()
            middle = ranks.double().quantile(0.5).item()
            details |= {f"{name}_mean_rank": ranks.double().mean().item() + 1, f"{name}_median_rank": int(middle) + 1}
        return Result(scores, details)

    def _embedded(self, module: Any, data: Any, gather: Gather) -> Any:
        """Images and texts of all ranks with the index of their sample, and the group of each index."""
        images, texts, image_of, text_of, groups = [], [], [], [], []
        for batch in prepared(module, data, "val", gather):
            # Padding goes along, so that every rank has as many rows of everything; it is left out afterwards.
            index = torch.where(batch["weight"] > 0, batch["index"], -1).to(module.device)
            groups.append(torch.stack([index, batch["group"].to(module.device)], 1))
            for view in views_of(batch):
                images.append(module.embed_image(view))
                image_of.append(index)
            for m, ids in enumerate(batch["text"]):
                texts.append(module.embed_text(ids))
                text_of.append(torch.where(batch["text_present"][:, m].to(module.device), index, -1))

        def everywhere(parts: list[Encoding], of: list[Tensor]) -> tuple[Encoding, Tensor]:
            own = torch.cat(of)
            everyone = own if gather.world == 1 else gather(len(own)).gather(own)
            real = everyone >= 0
            return part_of(gathered(joined(parts), gather), real), everyone[real]

        pairs = torch.cat(groups)
        pairs = pairs if gather.world == 1 else gather(len(pairs)).gather(pairs)
        pairs = pairs[pairs[:, 0] >= 0]
        alike = torch.full((int(pairs[:, 0].max()) + 1,), -1, dtype=torch.int64, device=pairs.device)
        alike[pairs[:, 0]] = pairs[:, 1]
        return everywhere(images, image_of), everywhere(texts, text_of), alike

    @staticmethod
    def _ranks(
        module: Any, queries: Encoding, of_query: Tensor, gallery: Encoding, of_item: Tensor, alike: Tensor,
        images_ask: bool, gather: Gather,
    ) -> Tensor:  # fmt: skip
        """(queries of all ranks,): wrong items before the first right one. Each rank takes a share of the queries."""
        ranks = torch.zeros(len(of_query), dtype=torch.int64, device=of_query.device)
        place = torch.arange(len(of_item), device=of_item.device)
        for start in range(gather.rank * CHUNK, len(of_query), gather.world * CHUNK):
            cut = slice(start, start + CHUNK)
            some = part_of(queries, cut)
            blocks = []
            for at in range(0, len(of_item), CHUNK):
                items = part_of(gallery, slice(at, at + CHUNK))
                pair = (some, items) if images_ask else (items, some)
                block = module.similarity(*pair)[0 if images_ask else 1]
                blocks.append(block if images_ask else block.T)
            s = finite(torch.cat(blocks, 1).float())
            mine = alike[of_query[cut], None]
            right = (of_query[cut, None] == of_item) | ((mine == alike[of_item]) & (mine >= 0))
            best, where = s.masked_fill(~right, -torch.inf).max(1, keepdim=True)
            before = (s > best) | ((s == best) & (place < where))
            ranks[cut] = (before & ~right).sum(1)
        return gather.sum(ranks).cpu()
