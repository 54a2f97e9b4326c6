"""Accuracy on val of what gives scores of classes: over all ranks, ties to the earlier class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from manyviews import distributed
from manyviews.backbones import Encoding, views_of
from manyviews.evaluation.features import prepared
from manyviews.evaluation.joint import JointProtocol, finite
from manyviews.evaluation.protocol import Result


@dataclass
class Accuracy(JointProtocol):
    """Top-1 of a method that classifies by itself (`Classifier`), on val; every natural view counts."""

    name = "accuracy"
    labels = True
    texts = False

    @override
    def ready(self, module: Any, data: Any) -> None:
        if not hasattr(module, "class_scores") or not hasattr(module, "classes"):
            raise ValueError(f"{type(module).__name__} does not classify: train manyviews.methods.Classifier on it")

    @override
    def measure(self, module: Any, data: Any) -> Result:
        self.ready(module, data)
        classes = int(module.classes)

        def scores(view: Tensor) -> Tensor:
            found: Tensor = module.class_scores(Encoding.of(module.backbone(view))).float()
            return found

        right, confusion, ties, samples = classified(module, data, scores, classes, (1,))
        top = (right[0] / confusion.sum()).item()
        details = {"samples": int(confusion.sum()), "ties": int(ties)}
        return Result({"accuracy": top}, details, confusion, {"accuracy": 1 / classes}, {"accuracy": int(samples)})


@torch.no_grad()
def classified(
    module: Any, data: Any, scores: Callable[[Tensor], Tensor], classes: int, k: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of val over all ranks: right answers among the k best, confusion (C, C), ties, and samples with a label.

    Args:
        scores: a view (B, ..) to (B, C). Ties go to the earlier class; every natural view counts.

    Raises:
        ValueError: if no sample has a label.
    """
    gather = distributed.current()
    right = torch.zeros(len(k), dtype=torch.float64)
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    ties, samples = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for batch in prepared(module, data, "val", gather):
        label = batch["label"].to(module.device)
        keep = (batch["weight"].to(module.device) > 0) & (label >= 0)
        samples += keep.sum().cpu()
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
    return right, confusion, ties, gather.sum(samples)
