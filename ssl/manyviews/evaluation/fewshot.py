"""Few-shot classification: N classes, K labelled samples each, from frozen features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import Protocol, Result, need_labels
from manyviews.similarity import unit


@dataclass
class FewShot(Protocol):
    """N-way K-shot by the nearest class mean, over fixed random episodes of val; the score is the mean accuracy.

    With `transport` (OpTA, of BECLR), class means are moved to the queries first: an optimal-transport plan from means
    to queries is computed, each mean replaced by what it sends its mass to, and again.

    Attributes:
        ways: N. shots: K. queries: of each class. episodes: how many; their standard error stands beside the score.
        transport: rounds of OpTA; 0: none. epsilon: of its entropic regularisation. seed: of the episodes.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    episodes: int = 600
    transport: int = 0
    epsilon: float = 0.1
    seed: int = 0
    name = "fewshot"
    learns = False

    @property
    @override
    def title(self) -> str:
        return f"fewshot_{self.ways}way_{self.shots}shot" + ("_opta" if self.transport else "")

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        _, val = need_labels("few-shot", train, val)
        z, label = unit(val.views.mean(0)), val.label
        need = self.shots + self.queries
        members = {int(c): (label == c).nonzero()[:, 0] for c in label.unique()}
        fitting = [c for c, places in members.items() if len(places) >= need]
        if len(fitting) < self.ways:
            raise ValueError(
                f"few-shot needs {self.ways} classes of {need} samples or more in val, there are {len(fitting)}: "
                "use fewer ways, shots or queries"
            )
        generator = torch.Generator().manual_seed(self.seed)
        accuracies = []
        for _episode in range(self.episodes):
            chosen = torch.randperm(len(fitting), generator=generator)[: self.ways]
            picks = [members[fitting[int(c)]] for c in chosen]
            picks = [places[torch.randperm(len(places), generator=generator)[:need]] for places in picks]
            means = unit(torch.stack([z[places[: self.shots]].mean(0) for places in picks]))
            queries = torch.cat([z[places[self.shots :]] for places in picks])
            for _round in range(self.transport):
                means = transported(means, queries, self.epsilon)
            right = torch.arange(self.ways).repeat_interleave(self.queries)
            accuracies.append(((queries @ means.T).argmax(1) == right).float().mean())
        each = torch.stack(accuracies)
        error = (each.std() / self.episodes**0.5).item() if self.episodes > 1 else float("nan")
        details = {"standard_error": error, "classes": len(fitting)}
        return Result({self.title: each.mean().item()}, details, chance={self.title: 1 / self.ways})


def transported(means: Tensor, queries: Tensor, epsilon: float) -> Tensor:
    """(N, D) unit means, each at the centre of the queries that an even transport plan gives it."""
    plan = transport_plan(2 - 2 * means @ queries.T, epsilon)
    return unit(plan @ queries / plan.sum(1, keepdim=True))


def transport_plan(cost: Tensor, epsilon: float, iterations: int = 200) -> Tensor:
    """(N, M): the entropic optimal transport plan between even marginals 1/N and 1/M, by Sinkhorn on -cost."""
    log_plan = -cost / epsilon
    n, m = cost.shape
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True) - math.log(n)
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True) - math.log(m)
    return log_plan.exp()
