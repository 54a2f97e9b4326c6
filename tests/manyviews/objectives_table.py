"""The registry that drives the objective tests: every objective of the package must have rows here.

A row: name of the case, a fresh objective for embeddings of width d, its slow reference `f(views, objective=fresh copy,
**context)`, and the numbers it must give on the worked example T3 (two and three views of three images; None where the
worked example needs more than views, and is a test of its own, or where it is defined for two views only).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews import objectives as o
from manyviews.objectives.mochi import Mixing
from tests.manyviews import references as ref

GROUP = torch.tensor([0, 1, 0, -1, -1, 2, 2, 2, 3, -1, 4])
LABEL = torch.tensor([0, 1, 2, 0, -1, 2, 3, 3, 1, 1, -1])
PARTNER = torch.tensor([1, 3, 2, 3, -1, 0, 1, 0, 2, 2, -1])


@dataclass
class Case:
    name: str
    make: Callable[[int], o.Objective]
    reference: Callable[..., Tensor]
    two: float | None = None
    three: float | None = None
    context: Callable[[int, int], dict[str, Any]] = field(default=lambda n, d: {})
    """Per-image tensors, or lists of them, beside the views: of n images, embeddings of width d."""
    views: int = 0
    """Views of the random batches; 0: 3 if there is a number for three, else 2."""
    keeps: str = "scale rotation shuffle swap"
    """What the loss is invariant to."""
    exactly_two: bool = True
    grouped: bool = True
    """Whether it honours `group`."""
    uncut: tuple[str, ...] = ()
    """Context that is the same on every rank and no sample's own."""
    width: int = 5
    """D of the random views."""
    smooth: bool = True
    """Whether its gradient is that of its value: not where weights are detached."""

    def __post_init__(self) -> None:
        self.views = self.views or (2 if self.three is None else 3)
        self.exactly_two = self.exactly_two and self.three is None

    def build(self, d: int = 5) -> o.Objective:
        """A fresh objective in float64, the same one at every call."""
        torch.manual_seed(0)
        return self.make(d).double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets(count: int) -> Callable[[int, int], dict[str, Any]]:
    return lambda n, d: {"targets": list(draw(count, n, d))}


def labels(n: int, d: int) -> dict[str, Any]:
    return {"label": LABEL[:n]}


def index(n: int, d: int) -> dict[str, Any]:
    return {"index": (torch.arange(n) * 7 + 3) % 23}


def class_pairs(n: int, d: int) -> dict[str, Any]:
    return {"label": LABEL[:n], "partner": PARTNER[:n], "gate": draw(n, d).sigmoid()}


def mixing(n: int, d: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(2)
    place = lambda s: torch.randint(4, (n, s), generator=g)  # noqa: E731
    share = lambda s: torch.rand(n, s, generator=g, dtype=torch.float64)  # noqa: E731
    return {"draws": Mixing(place(5), place(5), share(5), place(3), share(3) / 2), **targets(1)(n, d)}


def code(n: int, d: int) -> dict[str, Any]:
    return {"mean": draw(n, d), "log_scale": draw(n, d, seed=3) / 4, "log_likelihood": draw(n, seed=4)}


def visited(objective: o.SogCLR) -> o.SogCLR:
    """As if every second sample had been seen before."""
    objective.log_u[::2] = torch.linspace(-1, 1, len(objective.log_u[::2]))
    return objective


def sogclr(views, objective, index, group=None, **_):
    t = objective.tau[index] if isinstance(objective, o.ISogCLR) else torch.full((len(index),), objective.temperature)
    gamma, log_u, n = objective.gamma, objective.log_u[index], len(index)
    a, b = ref.rows_of(views)
    total = 0.0
    for anchors, others in ((a, b), (b, a)):
        for i in range(n):
            s = torch.stack([anchors[i] @ z[j] for z in (a, b) for j in range(n) if not ref.same(group, i, j)])
            g = torch.exp(s / t[i]).mean().detach()
            u = g if log_u[i] == -torch.inf else (1 - gamma) * log_u[i].exp() + gamma * g
            total = total - anchors[i] @ others[i] + (torch.exp(s / t[i]).detach() / u * s).mean()
    return total / n


def amcl(heads, d, **options):
    def reference(views, objective, targets=None, group=None, **_):
        net = lambda c, a, b: objective.tau(c, a, b)  # noqa: E731
        bank = None if objective.queue is None else objective.queue.items
        return ref.amcl(
            views, heads, d, net, objective.aggregate, objective.beta, targets=targets, bank=bank, group=group
        )

    return reference


def centred(objective):
    objective.centre.copy_(draw(len(objective.centre), seed=5))
    return objective


def swav(views, objective, **_):
    w = objective.prototypes  # float32 was not of length 1 to 1e-10
    prototypes = F.normalize(w, dim=1).detach() + w - w.detach()
    return ref.swav(views, prototypes, objective.temperature, objective.epsilon)


def hallucinator(views, objective, strength, targets=None, group=None, **_):
    host, layers = objective.host, objective.mlp[::2]
    made = lambda q, k, r: ref.hallucinated(q, k, objective.ratio * r, layers)  # noqa: E731
    if isinstance(host, o.NTXent):
        q, k = views
        h = made(q, k, strength[0])
        return ref.hallucinated_ntxent(q, h, k, host.temperature, group, objective.as_released)
    if isinstance(host, o.InfoNCE):
        bank = None if host.queue is None else host.queue.items
        extra = [made(q, k, r) for q, k, r in zip(views, ref.rows_of(targets), strength, strict=True)]
        losses = [ref.infonce(side, targets, host.temperature, bank, group=group) for side in (views, extra)]
    else:
        extra = [made(views[0], views[1], strength[0]), made(views[1], views[0], strength[1])]
        losses = [ref.byol(side, targets) / 4 - 1 for side in (views, extra)]
    return sum(losses) / 2


def simsiam_amcl(views, objective, targets, **_):
    total = 0.0
    for p, z in zip(views, targets, strict=True):
        heads = zip(ref.rows_of(p.chunk(2, 1)), ref.rows_of(z.chunk(2, 1)), strict=True)
        for a, b in heads:
            tau = objective.nets[0](a, b)
            omega = objective.dim / 2 * tau.log() + 1 / tau
            total = total + (objective.beta * omega - (a * b).sum(1) / (2 * tau)).mean()
    return total


def barlow_amcl(views, objective, **_):
    total = 0.0
    for a, b in zip(*(view.chunk(2, 1) for view in views), strict=True):
        c = ref.correlation(a, b, objective.eps)
        for l in range(len(c)):  # noqa: E741
            for m in range(len(c)):
                tau = objective.nets[0](c[l, m][None], c[m, l][None])
                omega = objective.dim / 2 * tau.log() + 1 / tau
                if l == m:
                    total = total + (1 - c[l, l] / tau) ** 2 + objective.beta * omega
                else:
                    total = total + objective.redundancy * c[l, m] ** 2 / tau - objective.beta * omega
    return total


def deepcluster(views, objective, index, **_):
    losses = []
    memory = objective.memory
    for centroids, clusters in zip(memory.centroids.split(memory.clusters), memory.assigned, strict=True):
        for z in ref.rows_of(views):
            log_p = torch.log_softmax(z @ centroids.T / objective.temperature, 1)
            mine = [-log_p[i, clusters[index[i]]] for i in range(len(z)) if clusters[index[i]] >= 0]
            losses.append(torch.stack(mine).mean())
    return torch.stack(losses).mean()


def meow(views, objective, index, **_):
    mine = objective.memory.assigned.T[index]

    def weight(i, j):
        return 0 if i == j else mine.shape[1] - int(((mine[i] == mine[j]) & (mine[i] >= 0)).sum())

    sizes, n, pulls = objective.memory.clusters, len(index), []
    parts = zip(objective.memory.centroids.split(sizes), objective.concentration.split(sizes), strict=True)
    for h, (c, phi) in enumerate(parts):
        for i, z in enumerate(ref.rows_of(views)[0]):
            own = int(mine[i, h])
            if own >= 0:
                push = torch.log(n / len(c) * sum(torch.exp(z @ c[k] / phi[k]) for k in range(len(c))))
                pulls.append(push - z @ c[own] / phi[own])
    pull = sum(pulls) / len(pulls)
    return ref.weighted(views, weight, objective.temperature) + objective.prototypes * pull


def adameow(views, objective, **_):
    a, b = ref.rows_of(views)
    net = lambda i, j: objective.last(objective.first(a[i] + b[j]).relu()).sigmoid()[0]  # noqa: E731
    mean = [sum(net(i, j) for j in range(len(a))) / len(a) for i in range(len(a))]
    return ref.weighted(views, lambda i, j: net(i, j) / mean[i], objective.temperature)


def repulsor(views, objective, **_):
    (z,) = ref.rows_of([objective.head(torch.cat(views))])
    bank = [] if objective.bank is None else ref.rows_of([objective.bank.items])[0]
    return objective.weight * ref.repulsion(z, bank, objective.temperature, objective.distance)


def group_whitened(views, objective, group=None, **_):
    g = torch.Generator().manual_seed(0)
    orders = [torch.randperm(views[0].shape[1], generator=g) for _ in range(objective.copies)]
    return ref.pwe(
        [ref.grouped(z, objective.groups, order, objective.eps) for order in orders for z in views], 0.5, group
    )


def meco(views, objective, noise, log_q, **_):
    ratio = noise.detach() - log_q
    u = (1 - objective.gamma) * objective.log_u.exp() + objective.gamma * ratio.exp().mean()
    return (ratio.exp() / u * noise).mean() - views[0][:, 0].mean()


def palm(views, objective, label, **_):
    return ref.palm(
        views, label, objective.prototypes, objective.classes, objective.momentum, objective.nearest,
        objective.temperature, objective.prototype_temperature, objective.epsilon,
    )  # fmt: skip


def filled(objective: o.BECLR) -> o.BECLR:
    """With a memory that is full, in clusters of its prototypes."""
    objective.memory.pushed.fill_(len(objective.memory))
    objective.cluster.copy_((objective.memory.items @ objective.prototypes.T).argmax(1))
    return objective


def beclr(views, objective, targets, projections=None, **_):
    return ref.beclr(
        views, targets, objective.memory.items, objective.cluster, objective.prototypes,
        objective.neighbours, objective.spread, objective.spread_temperature, projections,
    )  # fmt: skip


def whole(objective: o.PALM) -> o.PALM:
    """Prototypes of unit length in float64 too."""
    objective.double().prototypes.copy_(F.normalize(objective.prototypes, dim=1))
    return objective


def exact(objective: o.Repulsor) -> o.Repulsor:
    """With a bank of unit length in float64 too."""
    objective.double().bank.items.copy_(F.normalize(objective.bank.items, dim=1))
    return objective


CLASS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0, 1, 1, 0])
FLAG = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0])
TARGET = torch.tensor([1.0, 2.0, 4.0, 2.0, 3.5, 1.0, 0.5, 6.0, 2.0, 4.0, 5.0], dtype=torch.float64)


def image_volume(views, objective, volumes, predicted, features, hidden, **_):
    slices = [torch.cat([row.view(2, -1) for row in view]) for view in views]
    intra = swav(slices, objective.intra)
    inter = sum(swav(volumes, head) for head in objective.inter) / len(objective.inter)
    errors = [((predicted[i, s] - features[i, s]) ** 2).mean() for i, s in hidden.nonzero().tolist()]
    return intra + inter + sum(errors) / len(errors)


def guesses(n: int, d: int) -> dict[str, Any]:
    gumbel = -torch.empty(n, d, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(5)).log()
    return {"label": LABEL[:n], "features": draw(n, 4), "noise": gumbel, "parts": draw(n, 3, 4, seed=6)}


def clustered(objective: Any) -> Any:
    """As after an epoch in which most samples were seen."""
    memory = objective.memory
    memory.items.copy_(F.normalize(torch.randn(memory.items.shape), dim=2))
    memory.items[:, 10] = 0
    memory.cluster()
    return objective


def spread_out(objective: o.ISogCLR) -> o.ISogCLR:
    """Every sample at another temperature."""
    objective.tau.copy_(torch.linspace(0.2, 0.9, len(objective.tau)))
    return objective


CASES = [
    Case("NTXent-t.5", lambda d: o.NTXent(0.5), lambda z, group=None, **_: ref.ntxent(z, 0.5, group), 0.96854400, None),
    Case("NTXent-t.1", lambda d: o.NTXent(0.1), lambda z, group=None, **_: ref.ntxent(z, 0.1, group), 1.33519908, None),
    Case("DCL-t.5", lambda d: o.DCL(0.5), lambda z, group=None, **_: ref.dcl(z, 0.5, None, group), 0.40624399, None),
    Case("DCL-t.1", lambda d: o.DCL(0.1), lambda z, group=None, **_: ref.dcl(z, 0.1, None, group), -0.00558242, None),
    Case(
        "DCLW-t.5",
        lambda d: o.DCL(0.5, 0.5),
        lambda z, group=None, **_: ref.dcl(z, 0.5, 0.5, group),
        0.47871233,
        smooth=False,
    ),
    Case(
        "DCLW-t.1",
        lambda d: o.DCL(0.1, 0.5),
        lambda z, group=None, **_: ref.dcl(z, 0.1, 0.5, group),
        0.35675932,
        smooth=False,
    ),
    Case(
        "MVInfoNCE",
        lambda d: o.MVInfoNCE(0.5),
        lambda z, group=None, **_: ref.mv_infonce(z, 0.5, True, group),
        0.98028409,
        0.70053377,
    ),
    Case(
        "MVInfoNCE-formula",
        lambda d: o.MVInfoNCE(0.5, same_view_negatives=False),
        lambda z, group=None, **_: ref.mv_infonce(z, 0.5, False, group),
        0.68748501,
        0.54657101,
    ),
    Case(
        "MVDHEL",
        lambda d: o.MVDHEL(0.5),
        lambda z, group=None, **_: ref.mv_dhel(z, 0.5, False, group),
        0.61666236,
        0.36188221,
    ),
    Case(
        "MVDHEL-ordered",
        lambda d: o.MVDHEL(0.5, ordered=True),
        lambda z, group=None, **_: ref.mv_dhel(z, 0.5, True, group),
        -0.07648482,
        -0.33126497,
    ),
    Case(
        "PairwiseViews",
        lambda d: o.PairwiseViews(0.5),
        lambda z, group=None, **_: ref.pwe(z, 0.5, group),
        0.96854400,
        0.83968831,
    ),
    Case(
        "AverageViews",
        lambda d: o.AverageViews(0.5),
        lambda z, group=None, **_: ref.avg(z, 0.5, group),
        0.96854400,
        0.79376319,
    ),
    Case(
        "PolyView",
        lambda d: o.PolyView(0.5),
        lambda z, group=None, **_: ref.pvc(z, 0.5, "geometric", group),
        0.96854400,
        1.10183070,
    ),
    Case(
        "PolyView-arithmetic",
        lambda d: o.PolyView(0.5, kind="arithmetic"),
        lambda z, group=None, **_: ref.pvc(z, 0.5, "arithmetic", group),
        0.96854400,
        1.09171280,
    ),
    Case(
        "InfoNCE-batch",
        lambda d: o.InfoNCE(0.5),
        lambda z, targets, group=None, **_: ref.infonce(z, targets, 0.5, group=group),
        context=targets(2),
        exactly_two=False,
    ),
    Case(
        "InfoNCE-official",
        lambda d: o.InfoNCE(0.2, scale="official"),
        lambda z, targets, group=None, **_: ref.infonce(z, targets, 0.2, scale="official", group=group),
        context=targets(2),
        exactly_two=False,
    ),
    Case(
        "InfoNCE-queue",
        lambda d: o.InfoNCE(0.2, queue_size=30, dim=d),
        lambda z, objective, targets, **_: ref.infonce(z, targets, 0.2, bank=objective.queue.items),
        context=targets(2),
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle swap",
    ),
    Case(
        "MoCHi",
        lambda d: o.MoCHi(0.2, queue_size=30, dim=d, hard=4, mixed=5, mixed_with_query=3, from_epoch=0),
        lambda z, objective, targets, draws, **_: ref.mochi(z, targets, objective.queue.items, 0.2, 4, draws),
        context=mixing,
        smooth=False,
        views=1,
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle",
    ),
    Case(
        "NNCLR",
        lambda d: o.NNCLR(0.2, support=30, dim=d),
        lambda z, objective, targets, group=None, **_: ref.nnclr(
            z, targets, objective.support.items, 0.2, False, group
        ),
        context=targets(2),
        exactly_two=False,
        keeps="scale shuffle swap",
    ),
    Case(
        "NNCLR-decoupled",
        lambda d: o.NNCLR(0.2, support=30, dim=d, decoupled=True),
        lambda z, objective, targets, group=None, **_: ref.nnclr(z, targets, objective.support.items, 0.2, True, group),
        context=targets(2),
        exactly_two=False,
        keeps="scale shuffle swap",
    ),
    Case(
        "BYOL",
        lambda d: o.BYOL(),
        lambda z, targets, **_: ref.byol(z, targets),
        context=targets(2),
        exactly_two=False,
        grouped=False,
    ),
    Case(
        "SimSiam",
        lambda d: o.SimSiam(),
        lambda z, targets, **_: ref.byol(z, targets) / 4 - 1,
        context=targets(2),
        exactly_two=False,
        grouped=False,
    ),
    Case(
        "BarlowTwins",
        lambda d: o.BarlowTwins(0.1),
        lambda z, **_: ref.barlow(z, 0.1, 1e-5),
        grouped=False,
        keeps="shuffle swap",
    ),
    Case("VICReg", lambda d: o.VICReg(), lambda z, **_: ref.vicreg(z), grouped=False, keeps="shuffle swap"),
    Case(
        "SwAV",
        lambda d: o.SwAV(d, prototypes=4, epsilon=0.3),
        swav,
        views=4,
        exactly_two=False,
        grouped=False,
        smooth=False,
        keeps="scale shuffle",
    ),
    Case(
        "DINO",
        lambda d: centred(o.DINO(d, 0.5, 0.3)),
        lambda z, objective, targets, **_: ref.dino(z, targets, objective.centre, 0.5, 0.3),
        context=targets(2),
        views=4,
        exactly_two=False,
        grouped=False,
        keeps="shuffle",
    ),
    Case(
        "DeepCluster",
        lambda d: clustered(o.DeepCluster(23, d, (4, 3))),
        deepcluster,
        context=index,
        views=3,
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle swap",
    ),
    *(
        Case(
            f"Hallucinator{name}",
            lambda d, make=make, options=options: o.Hallucinator(make(d), dim=d, **options),
            hallucinator,
            context=lambda n, d, count=count: {
                "strength": torch.tensor([0.3, 0.9][: count or 1], dtype=torch.float64),
                **(targets(count)(n, d) if count else {}),
            },
            views=count or 2,
            keeps="shuffle",
            grouped=grouped,
            uncut=("strength",),
        )
        for name, make, options, count, grouped in (
            ("", lambda d: o.NTXent(0.5), {"ratio": 0.7}, 0, True),
            ("-released", lambda d: o.NTXent(0.5), {"ratio": 0.7, "as_released": True}, 0, True),
            ("-MoCo", lambda d: o.InfoNCE(0.2, 30, d), {}, 1, False),
            ("-MoCo-released", lambda d: o.InfoNCE(0.2, 30, d), {"as_released": True}, 2, False),
            ("-batch", lambda d: o.InfoNCE(0.5), {"ratio": 0.7}, 2, True),
            ("-SimSiam", lambda d: o.SimSiam(), {"ratio": 0.7}, 2, False),
        )
    ),
    Case("SogCLR", lambda d: visited(o.SogCLR(23, 0.5, 0.7)), sogclr, context=index, smooth=False),
    Case(
        "ISogCLR",
        lambda d: visited(spread_out(o.ISogCLR(23, 0.5, 0.7))),
        sogclr,
        context=index,
        smooth=False,
    ),
    Case(
        "CMIM",
        lambda d: o.CMIM(0.3),
        lambda z, mean, log_scale, log_likelihood, group=None, **_: ref.cmim(
            z, mean, log_scale, 0.3, log_likelihood, group
        ),
        context=code,
        views=1,
        exactly_two=False,
        keeps="shuffle",
    ),
    Case(
        "HardContrastive-all",
        lambda d: o.HardContrastive(0.5, 1.0),
        lambda z, group=None, **_: ref.ntxent(z, 0.5, group),
        0.96854400,
    ),
    Case(
        "HardContrastive-2",
        lambda d: o.HardContrastive(0.5, 2),
        lambda z, group=None, **_: ref.hard(z, 0.5, 2, group),
        0.882246,
    ),
    Case(
        "HardContrastive-1",
        lambda d: o.HardContrastive(0.5, 1),
        lambda z, group=None, **_: ref.hard(z, 0.5, 1, group),
        0.724496,
    ),
    Case(
        "SupCon",
        lambda d: o.SupCon(0.5),
        lambda z, label, **_: ref.supcon(z, label, 0.5),
        context=labels,
        views=3,
        exactly_two=False,
        grouped=False,
    ),
    *(
        Case(
            f"AMCL-{negatives}",
            lambda d, negatives=negatives: o.AMCL(2, 3, negatives, beta=0.3),
            amcl(2, 3),
            grouped=True,
            keeps="scale shuffle swap",
        )
        for negatives in ("max", "lse", "lse+pos")
    ),
    Case(
        "AMCL-MoCo",
        lambda d: o.AMCL(2, 3, "lse", share_temperature_net=False, queue_size=30),
        amcl(2, 3),
        context=targets(2),
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle swap",
    ),
    Case(
        "AMCLSimSiam",
        lambda d: o.AMCLSimSiam(2, 3),
        simsiam_amcl,
        context=targets(2),
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle swap",
    ),
    Case("AMCLBarlow", lambda d: o.AMCLBarlow(2, 3), barlow_amcl, grouped=False, keeps="shuffle"),
    *(
        Case(
            f"Hydra-{'A' if renormalise else 'B'}{'-anchor' if per_anchor else ''}",
            lambda d, a=renormalise, p=per_anchor: o.Hydra(4, d, renormalise=a, per_anchor=p, scale=2.0),
            lambda z, objective, label, partner, gate, a=renormalise, p=per_anchor, **_: ref.hydra(
                z, label, partner, gate, objective.log_scale.exp(), a, p
            ),
            context=class_pairs,
            grouped=False,
            keeps="scale shuffle swap",
        )
        for renormalise, per_anchor in ((True, False), (False, False), (True, True))
    ),
    Case(
        "HydraMoCo",
        lambda d: o.HydraMoCo(o.Hydra(4, d, scale=2.0), temperature=0.5, beta=0.7),
        lambda z, objective, targets, label, partner, gate, **_: (
            (
                ref.infonce(z, targets, 0.5)
                + 0.7 * ref.hydra(z, label, partner, gate, objective.hydra.log_scale.exp(), targets=targets)
            )
            / 1.7
        ),
        context=lambda n, d: {**class_pairs(n, d), **targets(2)(n, d)},
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle swap",
    ),
    Case(
        "ImageVolume",
        lambda d: o.ImageVolume(2, d // 2, 4, (3, 2), epsilon=0.3),
        image_volume,
        context=lambda n, d: {
            "volumes": list(draw(2, n, d // 2)),
            "predicted": draw(n, 2, 3),
            "features": draw(n, 2, 3, seed=2),
            "hidden": draw(n, 2) > 0.2,
        },
        grouped=False,
        smooth=False,
        keeps="shuffle",
    ),
    Case(
        "WMSE",
        lambda d: o.WMSE(),
        lambda z, **_: ref.wmse(z),
        views=3,
        exactly_two=False,
        grouped=False,
        keeps="shuffle swap",
    ),
    Case(
        "GroupWhitened",
        lambda d: o.GroupWhitened(o.PairwiseViews(0.5), groups=2, copies=2),
        group_whitened,
        exactly_two=False,
        keeps="shuffle swap",
    ),
    Case(
        "MEOW",
        lambda d: clustered(o.MEOW(23, d, (4, 3))),
        meow,
        context=index,
        grouped=False,
        keeps="scale shuffle",
    ),
    Case("AdaMEOW", lambda d: o.AdaMEOW(d, 7), adameow, grouped=False, keeps="scale shuffle"),
    Case(
        "Repulsor",
        lambda d: exact(o.Repulsor(d, 3, bank_size=30)),
        repulsor,
        exactly_two=False,
        grouped=False,
        keeps="shuffle swap",
    ),
    Case(
        "Repulsor-cosine",
        lambda d: o.Repulsor(d, 3, bank_size=0, distance="cosine"),
        repulsor,
        exactly_two=False,
        grouped=False,
        keeps="shuffle swap",
    ),
    Case(
        "MECO",
        lambda d: o.MECO(1.0),
        meco,
        context=lambda n, d: {"noise": draw(n), "log_q": draw(n, seed=2) - 1},
        views=1,
        exactly_two=False,
        grouped=False,
        smooth=True,
        keeps="shuffle",
    ),
    Case(
        "SiMHand",
        lambda d: o.SiMHand(0.5),
        lambda z, joints, **_: ref.simhand(z, joints, 0.5),
        context=lambda n, d: {"joints": draw(n, 2, 4, 2)},
        grouped=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "SepCLR",
        lambda d: o.SepCLR(0.5, 3.0, 2.0, 1.5),
        lambda z, salient, label, **_: ref.sepclr(z, salient, label, 0.5, 3.0, 2.0, 1.5),
        context=lambda n, d: {"salient": list(draw(2, n, 3)), "label": FLAG[:n]},
        grouped=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "SupReMix",
        lambda d: o.SupReMix(0.3, delta=0.6),
        lambda z, target, draws, **_: ref.supremix(z, target, draws, 0.3, 0.6, 0.5),
        context=lambda n, d: {"target": TARGET[:n], "draws": list(draw(3, n).sigmoid())},
        views=1,
        exactly_two=False,
        grouped=False,
        keeps="scale rotation",
    ),
    Case(
        "PALM",
        lambda d: whole(o.PALM(3, d, 3, momentum=0.6, nearest=2, epsilon=0.3)),
        palm,
        context=lambda n, d: {"label": CLASS[:n]},
        exactly_two=False,
        grouped=False,
        smooth=False,
        keeps="scale shuffle swap",
    ),
    Case(
        "BaCon",
        lambda d: o.BaCon(0.3, 0.5, 0.35, 0.5),
        lambda z, label, logits, **_: ref.bacon(z, label, logits, 0.3, 0.5, 0.35, 0.5, 1.0),
        context=lambda n, d: {"label": LABEL[:n], "logits": list(draw(2, n, 4, seed=3) * 2)},
        grouped=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "CPL",
        lambda d: o.CPL(accept=0.3),
        lambda z, features, label, noise, parts, **_: ref.cpl(z, features, label, noise, 0.5, 0.5, 1.0, 0.3, parts),
        context=guesses,
        grouped=False,
        smooth=False,
        keeps="",
    ),
    Case(
        "BECLR",
        lambda d: filled(o.BECLR(d, memory=40, clusters=4, neighbours=3, from_epoch=0)),
        beclr,
        context=targets(2),
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle swap",
    ),
]
