"""The rows of the objectives table for images with texts, each with its dense reference beside it."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from manyviews import objectives as o
from manyviews.heads import LogitScale
from tests.manyviews.objectives_table import Case, draw
from tests.manyviews.references import ntxent, rows_of, same


def cross_entropy(logits, target):
    """Mean over rows of -sum_j target_ij log softmax(logits_i)_j."""
    return -(target * torch.where(target > 0, torch.log_softmax(logits, 1), 0)).sum(1).mean()


def clip(views, objective, group=None, extra=None, **_):
    s, eps, n = objective.scale.log_scale.exp(), objective.smoothing, len(views[0])
    a, b = rows_of(views)
    if not objective.normalise:
        a = views[0]
    logits = s * a @ b.T
    twin = torch.tensor([[i != j and same(group, i, j) for j in range(n)] for i in range(n)])

    def direction(logits):
        if objective.positives == "own":
            logits, open_ = logits.masked_fill(F.pad(twin, (0, logits.shape[1] - n)), -math.inf), (~twin).double()
            own = torch.eye(n, dtype=torch.float64)
        else:
            open_ = torch.ones(n, n, dtype=torch.float64)
            own = torch.eye(n, dtype=torch.float64) + twin.double()
        target = (1 - eps) * own / own.sum(1, keepdim=True) + eps * open_ / open_.sum(1, keepdim=True)
        return cross_entropy(logits, F.pad(target, (0, logits.shape[1] - n)))

    first = logits if extra is None else torch.cat([logits, s * a @ rows_of([extra.flatten(0, 1)])[0].T], 1)
    if objective.directions == "first":
        return direction(first)
    return (direction(first) + direction(logits.T)) / 2


def siglip(views, objective, group=None, **_):
    s, beta, n = objective.scale.log_scale.exp(), objective.scale.bias, len(views[0])
    a, b = rows_of(views)
    total = 0.0
    for i in range(n):
        for j in range(n):
            sign = 1 if same(group, i, j) else -1
            total = total - F.logsigmoid(sign * (s * a[i] @ b[j] + beta))
    return total / n


def hard(n, d):
    return {"extra": draw(n, 2, d)}


CASES = [
    Case("CLIP", lambda d: o.CLIP(LogitScale(3.0)), clip),
    Case("CLIP-free", lambda d: o.CLIP(LogitScale(60.0)), clip),
    Case("CLIP-extra", lambda d: o.CLIP(LogitScale(3.0)), clip, context=hard, keeps="scale shuffle"),
    Case("CLIP-positives", lambda d: o.CLIP(LogitScale(3.0), positives="group"), clip),
    Case("ALIGN", lambda d: o.CLIP(LogitScale(3.0), smoothing=0.1), clip),
    Case("ALIGN-positives", lambda d: o.CLIP(LogitScale(3.0), smoothing=0.1, positives="group"), clip),
    Case(
        "CLIP-first",
        lambda d: o.CLIP(LogitScale(1.0), directions="first", normalise=False),
        clip,
        keeps="rotation shuffle",
    ),
    Case("SigLIP", lambda d: o.SigLIP(LogitScale(3.0, None, -2.0)), siglip),
]


# Tokens: images of three patches, texts of four words, some of them padding.


def tokens(widths=(5, 5)):
    def context(n, d):
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()[torch.arange(n) % 3]
        return {
            "tokens": [draw(n, 3, widths[0]), draw(n, 4, widths[1], seed=2)],
            "masks": [torch.ones(n, 3, dtype=torch.bool), mask],
        }

    return context


def words(tokens, masks, normal=True):
    """Per modality and item the list of its valid tokens."""
    found = [[x[i][m[i]] for i in range(len(x))] for x, m in zip(tokens, masks, strict=True)]
    return [[F.normalize(x, dim=1) if normal else x for x in part] for part in found]


def own_of(logits, group, positives="own"):
    """Mean of minus log softmax of the diagonal, twins left out; or of all twins in equal shares."""
    n = len(logits)
    twin = torch.tensor([[i != j and same(group, i, j) for j in range(n)] for i in range(n)])
    if positives == "group":
        return cross_entropy(logits, (right := twin + torch.eye(n, dtype=torch.float64)) / right.sum(1, keepdim=True))
    return -torch.log_softmax(logits.masked_fill(twin, -math.inf), 1).diagonal().mean()


def filip(views, objective, tokens, masks, group=None, **_):
    v, t = words(tokens, masks)
    n, s = len(v), objective.scale()

    def seen(a, b):
        if objective.keep == 1:
            return a
        keep = max(1, round(objective.keep * 4 if len(a) > 3 else objective.keep * 3))
        return a[(a @ b.T).amax(1).topk(min(keep, len(a))).indices]

    first = torch.stack([torch.stack([(v[i] @ seen(t[j], v[j]).T).amax(1).mean() for j in range(n)]) for i in range(n)])
    other = torch.stack([torch.stack([(t[j] @ seen(v[i], t[i]).T).amax(1).mean() for i in range(n)]) for j in range(n)])
    return (own_of(s * first, group, objective.positives) + own_of(s * other, group, objective.positives)) / 2


def cgvlm(views, objective, tokens, masks, group=None, **_):
    v, e = words(tokens, masks)
    s = objective.scale() * torch.stack([torch.stack([(a @ b.T).mean() for b in e]) for a in v])
    return (own_of(s, group, objective.positives) + own_of(s.T, group, objective.positives)) / 2


def sparsemax(a):
    """By bisection on the threshold."""
    low, high = a.min() - 1, a.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (a - middle).relu().sum() > 1 else (low, middle)
    support = a > high.detach() + 1e-12
    return torch.where(support, a - (a[support].sum() - 1) / support.sum(), 0)


def fdt(views, objective, tokens, masks, group=None, **_):
    z = []
    for modality, items in enumerate(words(tokens, masks, normal=False)):
        rows = []
        for x in items:
            fit = objective.queries[modality](x) @ objective.codes.T / objective.codes.shape[1] ** 0.5
            everyone = (
                [*fit, *[0 * fit[0]] * (tokens[modality].shape[1] - len(x))] if objective.padding == "zero" else [*fit]
            )
            pooled = sum(everyone) / len(everyone) if objective.pool == "mean" else torch.stack(everyone).amax(0)
            rows.append(sparsemax(pooled / objective.temperature) @ objective.codes)
        z.append(F.normalize(torch.stack(rows), dim=1))
    s = objective.scale() * z[0] @ z[1].T
    return (own_of(s, group, objective.positives) + own_of(s.T, group, objective.positives)) / 2


def improved(views, objective, group=None, **_):
    def one(module, a, b):
        return clip([a, b], module, group=group)

    strong = (len(views) - 2) // 2
    images, texts = views[2 : 2 + strong], views[2 + strong :]
    local = sum(one(objective.strong, a, b) for a in images for b in texts) / strong**2
    total = (one(objective.weak, *views[:2]) + strong * local) / (1 + strong)
    return total * (2 if objective.reduction == "sum" else 1)


def siamlip(views, targets, **_):
    p, v = rows_of(views), rows_of([target.detach() for target in targets])
    terms = [(p[0] * v[1]).sum(1), (p[1] * v[0]).sum(1)]
    for a in (2, 3):
        for b in (4, 5):
            terms += [(p[a] * v[b]).sum(1), (p[b] * v[a]).sum(1)]
    return torch.stack([2 - 2 * term.mean() for term in terms]).mean()


def barlip(views, objective, **_):
    losses = []
    for a, b in [(0, 1), *((2 + i, 4 + j) for i in range(2) for j in range(2))]:
        c = views[a].T @ views[b] / len(views[0])
        total = 0.0
        for i in range(len(c)):
            for j in range(len(c)):
                total = total + ((c[i, i] - 1) ** 2 if i == j else objective.redundancy * c[i, j] ** 2)
        losses.append(objective.weight * total)
    return sum(losses) / len(losses)


def balanced(s, eps, iterations):
    q = torch.exp(s / eps).T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / (q.sum(1, keepdim=True) * q.shape[0])
        q = q / (q.sum(0, keepdim=True) * q.shape[1])
    return (q * q.shape[1]).T


def swalip(views, objective, **_):
    images, texts = rows_of(views[2:4]), rows_of(views[4:6])
    s, losses = objective.scale(), []
    for a in range(2):
        for b in range(2):
            other = (images[1 - a] @ texts[1 - b].T).detach()
            logits = s * images[a] @ texts[b].T
            q = balanced(other, objective.epsilon, objective.iterations)
            losses.append(-(q * logits.log_softmax(1)).sum(1).mean())
            q = balanced(other.T, objective.epsilon, objective.iterations)
            losses.append(-(q * logits.T.log_softmax(1)).sum(1).mean())
    return torch.stack(losses).mean()


def slip(views, objective, strong, group=None, **_):
    return clip(views, objective.clip, group=group) + objective.weight * ntxent(
        strong, objective.ntxent.temperature, group
    )


def mgca(views, objective, tokens, masks, group=None, **_):
    v, t = rows_of(views)
    s = v @ t.T / objective.temperature
    instance = own_of(s, group, objective.positives) + own_of(s.T, group, objective.positives)
    p, w = words(tokens, masks)
    local = 0.0
    for side in ((w, p), (p, w)):
        each = []
        for a, b in zip(*side, strict=True):
            seen = F.normalize((a @ b.T / objective.local_temperature).softmax(1) @ b, dim=1)
            m = a @ seen.T / objective.local_temperature
            each.append(0.5 * (F.cross_entropy(m, torch.arange(len(a))) + F.cross_entropy(m.T, torch.arange(len(a)))))
        local = local + torch.stack(each).mean()
    w = objective.prototypes
    q = F.normalize(w, dim=1).detach() + w - w.detach()
    codes = [balanced((x @ q.T).detach(), objective.epsilon, 3) for x in (v, t)]
    logs = [(x @ q.T / objective.prototype_temperature).log_softmax(1) for x in (v, t)]
    swapped = 0.5 * sum(-(c * log).sum(1).mean() for c, log in zip(codes, logs[::-1], strict=True))
    x, y, z = objective.weights
    return x * instance + y * local + z * swapped


KNOWN = torch.tensor([0, 1, 2, 0, -1, 2, 2, 1, 1, 1, -1])


def labelled_captions(n, d):
    return {"label": KNOWN[:n], "captions": draw(n, 3, d), "present": draw(n, 3, seed=3) > -0.7}


def mcip(views, objective, label, captions, present, **_):
    (u,), s = rows_of(views), objective.scale
    w, n = F.normalize(captions, dim=2), len(label)
    c = u @ F.normalize(objective.classes, dim=1).T
    first = []
    for i in range(n):
        if label[i] >= 0:
            logits = s * c[i]
            logits = torch.cat(
                [
                    logits[: label[i]],
                    s * torch.cos(c[i, label[i]].acos() + objective.margin)[None],
                    logits[label[i] + 1 :],
                ]
            )
            first.append(-logits.log_softmax(0)[label[i]])
    second = []
    for i in range(n):
        others = [s * u[i] @ w[j, m] for j in range(n) for m in range(3) if present[j, m] and not same(label, i, j)]
        for m in range(3):
            if present[i, m]:
                own = s * torch.cos((u[i] @ w[i, m]).acos() + objective.caption_margin)
                second.append(torch.stack([own, *others]).logsumexp(0) - own)
    return torch.stack(first).mean() + objective.caption_weight * torch.stack(second).mean()


def prompts(n, d):
    unit = lambda x: F.normalize(x, dim=2)  # noqa: E731
    return {"label": KNOWN[:n], "prompts": unit(draw(3, 4, d)), "hand": unit(draw(3, 4, d, seed=5))}


def mocoop(views, objective, label, prompts, hand, **_):
    (u,), s = rows_of(views), objective.scale
    classify, route = [], []
    for i in range(len(u)):
        if label[i] < 0:
            continue
        gate = objective.router.weight @ u[i] + objective.router.bias
        first, second = gate.argsort(descending=True)[:2].tolist()
        share = torch.stack([gate[first], gate[second]]).softmax(0)
        mixed = share[0] * prompts[first] + share[1] * prompts[second]
        classify.append(-(s * mixed @ u[i]).log_softmax(0)[label[i]])
        wanted = torch.stack([u[i] @ hand[g, label[i]] for g in range(3)]).detach()
        wanted[wanted.argsort(descending=True)[:2]] += 10
        route.append(-(wanted.softmax(0) * gate.log_softmax(0)).sum())
    near = torch.stack([F.cross_entropy(s * prompts[g] @ hand[g].T, torch.arange(4)) for g in range(3)]).mean()
    return (
        torch.stack(classify).mean()
        + objective.text_weight * near
        + objective.router_weight * torch.stack(route).mean()
    )


def orma(views, objective, tokens, masks, group=None, **_):
    a, b = rows_of(views)
    r, t = words(tokens, masks)
    s, n = [scale() for scale in objective.scales], len(r)
    rows = []
    for i in range(n):
        row = []
        for j in range(n):
            c = 1 - t[i] @ r[j].T
            k = torch.exp(-c.detach() / objective.epsilon)
            x = torch.ones(len(k), dtype=torch.float64)
            for _ in range(400):
                y = (1 / k.shape[1]) / (k.T @ x)
                x = (1 / k.shape[0]) / (k @ y)
            plan = x[:, None] * k * y
            merged = F.normalize(plan.T @ t[i], dim=1)
            row.append(torch.stack([-(plan * c).sum(), (merged * r[j]).sum(1).mean()]))
        rows.append(torch.stack(row))
    cost, multi = torch.stack(rows).unbind(2)
    total = (
        own_of(s[0] * a @ b.T, group, objective.positives) + own_of(s[0] * b @ a.T, group, objective.positives)
    ) / 2
    for scale, x, weight in ((s[1], cost, objective.weights[1]), (s[2], multi, objective.weights[0])):
        total = (
            total
            + weight
            * (own_of(scale * x, group, objective.positives) + own_of(scale * x.T, group, objective.positives))
            / 2
        )
    return total


def pairs(views, objective, group=None, **_):
    chosen = [(a, b) for a in range(3) for b in range(a + 1, 3) if objective.anchor in (None, a, b)]
    return sum(clip([views[a], views[b]], objective.clip, group=group) for a, b in chosen) / len(chosen)


def there(n, d):
    return {
        "present": torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]]).bool()[
            torch.arange(n) % 6
        ]
    }


def mv_missing(views, objective, present, group=None, **_):
    u, n, t = rows_of(views), len(views[0]), objective.temperature
    dhel = isinstance(objective, o.MVDHEL)
    terms = []
    for i in range(n):
        mine = [v for v in range(3) if present[i, v]]
        if len(mine) < 2:
            continue
        positives = [u[a][i] @ u[b][i] / t for a in mine for b in mine if (a < b if dhel else a != b)]
        align = torch.stack(positives).logsumexp(0)
        if dhel:
            columns = [
                [u[v][i] @ u[v][j] / t for j in range(n) if present[j, v] and not same(group, i, j)] for v in mine
            ]
            terms.append(sum(torch.stack(c).logsumexp(0) for c in columns if c) - align)
        else:
            everything = positives + [
                u[a][i] @ u[b][j] / t
                for a in mine for b in range(3) for j in range(n)
                if present[j, b] and not same(group, i, j) and (objective.same_view_negatives or a != b)
            ]  # fmt: skip
            terms.append(torch.stack(everything).logsumexp(0) - align)
    return torch.stack(terms).mean()


def strong(count):
    return lambda n, d: {"strong": list(draw(2, n, count))}


def targets6(n, d):
    return {"targets": list(draw(6, n, d))}


def orma_case(d):
    made = o.ORMA((0.7, 1.3), epsilon=0.5, tolerance=1e-13)
    for scale in made.scales:
        scale.log_scale.data.fill_(1.0)
    return made


wide = {"views": 2, "keeps": "shuffle", "exactly_two": False}
CASES += [
    Case("FILIP", lambda d: o.FILIP(LogitScale(3.0)), filip, context=tokens(), **wide),
    Case("FILIP-reduced", lambda d: o.FILIP(LogitScale(3.0), keep=0.5), filip, context=tokens(), **wide),
    Case("CGVLM", lambda d: o.CGVLM(LogitScale(3.0)), cgvlm, context=tokens(), **wide),
    *(
        Case(
            f"FDT-{pool}-{padding}",
            lambda d, pool=pool, padding=padding: o.FDT((6, 3), 8, 4, 0.5, pool, padding, LogitScale(3.0)),
            fdt,
            context=tokens((6, 3)),
            **wide,
        )
        for pool in ("max", "mean")
        for padding in ("out", "zero")
    ),
    Case(
        "ImprovedCLIP",
        lambda d: o.ImprovedCLIP(LogitScale(3.0), LogitScale(2.0)),
        improved,
        views=6,
        exactly_two=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "ImprovedCLIP-sum",
        lambda d: o.ImprovedCLIP(LogitScale(3.0), LogitScale(2.0), 0.0, "sum"),
        improved,
        views=6,
        exactly_two=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "SiamLIP",
        lambda d: o.SiamLIP(),
        siamlip,
        context=targets6,
        views=6,
        exactly_two=False,
        grouped=False,
        keeps="scale rotation shuffle",
    ),
    Case("BarLIP", lambda d: o.BarLIP(), barlip, views=6, exactly_two=False, grouped=False, keeps="shuffle"),
    Case(
        "SwALIP",
        lambda d: o.SwALIP(LogitScale(3.0), 0.3),
        swalip,
        views=6,
        exactly_two=False,
        grouped=False,
        smooth=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "SLIP",
        lambda d: o.SLIP(LogitScale(3.0), 0.7, 0.4),
        slip,
        context=strong(4),
        keeps="scale rotation shuffle swap",
    ),
    Case(
        "MGCA",
        lambda d: o.MGCA(5, 3, (0.7, 1.1, 1.3), 0.5, 0.4, 0.6, 0.3),
        mgca,
        context=tokens(),
        smooth=False,
        keeps="scale shuffle",
    ),
    Case(
        "MCIP",
        lambda d: o.MCIP(d, 3, 4.0, 0.2, 0.3, 0.8),
        mcip,
        context=labelled_captions,
        views=1,
        exactly_two=False,
        grouped=False,
        keeps="scale shuffle",
    ),
    Case(
        "MoCoOp",
        lambda d: o.MoCoOp(d, 3, 3.0, 0.6, 0.9),
        mocoop,
        context=prompts,
        views=1,
        exactly_two=False,
        grouped=False,
        uncut=("prompts", "hand"),
        smooth=False,
        keeps="scale shuffle",
    ),
    Case("ORMA", orma_case, orma, context=tokens(), smooth=False, keeps="scale shuffle"),
    Case("PairwiseCLIP", lambda d: o.PairwiseCLIP(LogitScale(3.0)), pairs, views=3, exactly_two=False),
    Case(
        "PairwiseCLIP-anchor",
        lambda d: o.PairwiseCLIP(LogitScale(3.0), 0),
        pairs,
        views=3,
        exactly_two=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "MVInfoNCE-missing",
        lambda d: o.MVInfoNCE(0.5),
        mv_missing,
        context=there,
        views=3,
        exactly_two=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "MVInfoNCE-published-missing",
        lambda d: o.MVInfoNCE(0.5, False),
        mv_missing,
        context=there,
        views=3,
        exactly_two=False,
        keeps="scale rotation shuffle",
    ),
    Case(
        "MVDHEL-missing",
        lambda d: o.MVDHEL(0.5),
        mv_missing,
        context=there,
        views=3,
        exactly_two=False,
        keeps="scale rotation shuffle",
    ),
]


def shared(case):
    """The same row with pairs of equal group as further right answers."""

    def make(d):
        made = case.make(d)
        for module in made.modules():
            if hasattr(module, "positives"):
                module.positives = "group"
        return made

    return replace(case, name=f"{case.name}-positives", make=make)


CASES += [
    shared(case)
    for case in CASES
    if case.name in ("FILIP", "CGVLM", "FDT-max-out", "MGCA", "ORMA", "ImprovedCLIP", "SLIP", "PairwiseCLIP")
]
