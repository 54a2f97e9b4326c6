"""Cross-view retrieval: find a thing by another picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import Protocol, Result, chance_at
from manyviews.similarity import unit

CHUNK = 1024


@dataclass
class Retrieval(Protocol):
    """R@k of natural view a among all of natural view b, both ways, by cosine, on val only.

    A hit is the same sample, or a known duplicate of it (equal `group`). Ties: an equal score counts against the query
    if its item stands earlier in the gallery.

    Attributes:
        k: the ranks that are reported.
    """

    k: tuple[int, ...] = (1, 5, 10)
    name = "retrieval"
    labels = False
    views = 2
    learns = False

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        self.check({"image": val.views, "label": val.label})
        scores = {}
        for a, b in permutations(range(len(val.views)), 2):
            ranks = retrieval_ranks(val.views[a], val.views[b], val.group)
            for k in self.k:
                scores[f"retrieval_{a}to{b}_r{k}"] = (ranks < k).float().mean().item()
        for k in self.k:
            each = [value for name, value in scores.items() if name.endswith(f"_r{k}") and "to" in name]
            scores[f"retrieval_r{k}"] = sum(each) / len(each)
        gallery = len(val.index)
        _, place, counts = val.group.unique(return_inverse=True, return_counts=True)
        right = torch.where(val.group >= 0, counts[place], 1)
        chance = {name: chance_at(right, gallery, int(name.rpartition("_r")[2])) for name in scores}
        details = {"gallery": gallery, "chance_r1": chance_at(right, gallery, 1)}
        return Result(scores, details, chance=chance, trials=dict.fromkeys(scores, gallery))


def retrieval_ranks(queries: Tensor, gallery: Tensor, group: Tensor) -> Tensor:
    """(n,): how many wrong items stand before the first right one; query i and item i are the same sample.

    Args:
        queries, gallery: (n, D). group: (n,), equal values >= 0 are duplicates.
    """
    gallery, places = unit(gallery), torch.arange(len(gallery))
    ranks = []
    for start in range(0, len(queries), CHUNK):
        rows = torch.arange(start, min(start + CHUNK, len(queries)))
        s = unit(queries[rows]) @ gallery.T
        right = (rows[:, None] == places) | ((group[rows, None] == group) & (group >= 0))
        best, where = s.masked_fill(~right, -torch.inf).max(1, keepdim=True)
        before = (s > best) | ((s == best) & (places < where))
        ranks.append((before & ~right).sum(1))
    return torch.cat(ranks)
