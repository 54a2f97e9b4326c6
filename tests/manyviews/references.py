"""Slow, dense, independent forms of the objectives: loops and full matrices, straight from the papers."""

import math

import torch

T3 = torch.tensor(
    [
        [[1.00, 0.00], [0.60, 0.80], [-0.80, 0.60]],
        [[0.80, 0.60], [-0.28, 0.96], [-0.96, 0.28]],
        [[0.96, -0.28], [0.28, 0.96], [-0.60, 0.80]],
    ],
    dtype=torch.float64,
)


def cosine(views):
    u = [view / view.norm(dim=1, keepdim=True) for view in views]
    return lambda l, i, m, j: torch.dot(u[l][i], u[m][j])  # noqa: E741


def same(group, i, j):
    return i == j or (group is not None and group[i] >= 0 and group[i] == group[j])


def ntxent(views, t, group=None):
    s, n, total = cosine(views), len(views[0]), 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(n):
            row = [s(a, i, b, i) / t]
            row += [s(a, i, v, j) / t for v in (0, 1) for j in range(n) if not same(group, i, j)]
            total = total + torch.logsumexp(torch.stack(row), 0) - row[0]
    return total / (2 * n)


def dcl(views, t, sigma=None, group=None):
    s, n, total = cosine(views), len(views[0]), 0.0
    positives = torch.stack([s(0, i, 1, i) for i in range(n)])
    w = torch.ones(n) if sigma is None else 2 - n * torch.softmax(positives / sigma, 0).detach()
    for a in (0, 1):
        for i in range(n):
            row = [s(a, i, v, j) / t for v in (0, 1) for j in range(n) if not same(group, i, j)]
            total = total + torch.logsumexp(torch.stack(row), 0) - w[i] * positives[i] / t
    return total / (2 * n)


def alignment(s, i, v, t):
    return torch.logsumexp(torch.stack([s(a, i, b, i) / t for a in range(v) for b in range(v) if a != b]), 0)


def mv_infonce(views, t, same_view=True, group=None):
    s, n, v, total = cosine(views), len(views[0]), len(views), 0.0
    for i in range(n):
        inner = [
            s(a, i, m, j) / t
            for a in range(v)
            for m in range(v)
            for j in range(n)
            if (m != a if i == j else (same_view or m != a) and not same(group, i, j))
        ]
        total = total + torch.logsumexp(torch.stack(inner), 0) - alignment(s, i, v, t)
    return total / n


def mv_dhel(views, t, ordered=False, group=None):
    s, n, v, total = cosine(views), len(views[0]), len(views), 0.0
    for i in range(n):
        for a in range(v):
            row = [s(a, i, a, j) / t for j in range(n) if not same(group, i, j)]
            total = total + torch.logsumexp(torch.stack(row), 0)
        total = total - alignment(s, i, v, t) + (0 if ordered else math.log(2))
    return total / n


def pwe(views, t, group=None):
    pairs = [(a, b) for a in range(len(views)) for b in range(a)]
    return sum(ntxent([views[a], views[b]], t, group) for a, b in pairs) / len(pairs)


def avg(views, t, group=None):
    """NT-Xent with un-normalised means, written out since `ntxent` above normalises."""
    u = [view / view.norm(dim=1, keepdim=True) for view in views]
    n, total = len(u[0]), 0.0
    for a in range(len(u)):
        mean = torch.stack([u[b] for b in range(len(u)) if b != a]).mean(0)
        z = torch.cat([u[a], mean])
        for r in range(2 * n):
            own, other = r % n, (r + n) % (2 * n)
            row = [z[r] @ z[other] / t] + [z[r] @ z[k] / t for k in range(2 * n) if not same(group, own, k % n)]
            total = total + torch.logsumexp(torch.stack(row), 0) - row[0]
    return total / (len(u) * 2 * n)


def pvc(views, t, kind="geometric", group=None):
    s, n, v, total = cosine(views), len(views[0]), len(views), 0.0
    for i in range(n):
        for a in range(v):
            negatives = [s(a, i, m, j) / t for m in range(v) for j in range(n) if not same(group, i, j)]
            losses = []
            for b in range(v):
                if b != a:
                    pos = s(a, i, b, i) / t
                    losses.append(torch.logsumexp(torch.stack([pos, *negatives]), 0) - pos)
            losses = torch.stack(losses)
            total = total + (losses.mean() if kind == "geometric" else -torch.log(torch.exp(-losses).mean()))
    return total / (n * v)
