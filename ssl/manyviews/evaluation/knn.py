"""The weighted k-nearest-neighbour classifier of InstDisc (Wu et al., CVPR 2018) and DINO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import Protocol, Result, need_labels
from manyviews.similarity import unit

CHUNK = 1024


@dataclass
class KNN(Protocol):
    """Cosine neighbours in the train split; class c gets the sum of exp(similarity / T) over the k nearest of class c.

    Natural views count as samples of their own, in the bank as among the queries.

    Attributes:
        k: numbers of neighbours, each with the `temperature` at its place: 20 with 0.07 (DINO), 200 with 0.1
            (InstDisc, MoCo's CIFAR demo). A k above the bank's size means all of it.
    """

    k: tuple[int, ...] = (20, 200)
    temperature: tuple[float, ...] = (0.07, 0.1)
    name = "knn"

    def __post_init__(self) -> None:
        if len(self.k) != len(self.temperature) or min(self.k) < 1 or min(self.temperature) <= 0:
            raise ValueError(f"one temperature > 0 for each k >= 1: got k={self.k}, temperature={self.temperature}")
        if len(set(self.k)) < len(self.k):
            raise ValueError(f"k={self.k}: a score is called by its k, so each may stand there once")

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        train, val = need_labels("kNN", train, val)
        bank, bank_label = train.flat()
        queries, label = val.flat()
        classes = int(torch.cat([bank_label, label]).max()) + 1
        votes = knn_votes(queries, bank, bank_label, classes, self.k, self.temperature)
        scores = {f"knn{k}": (v.argmax(1) == label).float().mean().item() for k, v in zip(self.k, votes, strict=True)}
        confusion = torch.bincount(label * classes + votes[0].argmax(1), minlength=classes**2).view(classes, classes)
        details = {"bank": len(bank), "queries": len(queries), "classes": classes}
        return Result(
            scores, details, confusion, dict.fromkeys(scores, 1 / classes), dict.fromkeys(scores, len(val.label))
        )


def knn_votes(
    queries: Tensor, bank: Tensor, label: Tensor, classes: int, k: tuple[int, ...], temperature: tuple[float, ...]
) -> list[Tensor]:
    """(q, classes) votes for each (k, temperature), in chunks of queries: q x bank similarities are never held.

    Args:
        queries: (q, D). bank: (b, D). label: (b,) of the bank.
    """
    bank = unit(bank)
    most = min(max(k), len(bank))
    votes: list[list[Tensor]] = [[] for _ in k]
    for chunk in queries.split(CHUNK):
        s, nearest = torch.topk(unit(chunk) @ bank.T, most, dim=1)
        for out, each, t in zip(votes, k, temperature, strict=True):
            weight = (s[:, :each] / t).sub(s[:, :1] / t).exp()  # relative to the nearest: no overflow
            out.append(weight.new_zeros(len(chunk), classes).scatter_add_(1, label[nearest[:, :each]], weight))
    return [torch.cat(parts) for parts in votes]
