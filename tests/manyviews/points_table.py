"""The rows of the objectives table for point clouds, each with its dense reference beside it."""

import torch
import torch.nn.functional as F

from manyviews import objectives as o
from tests.manyviews.objectives_table import Case, draw, labels

GROUP_SIZE = 2


def chamfer(a, b, norm):
    """Of two clouds, point by point."""
    there = [min((p - q).square().sum() for q in b) for p in a]
    back = [min((p - q).square().sum() for p in a) for q in b]
    if norm == "l1":
        there, back = ([d.sqrt() for d in part] for part in (there, back))
    return (sum(there) / len(there) + sum(back) / len(back)) / (2 if norm == "l1" else 1)


def pointmae(views, objective, **_):
    patches = [view.view(-1, GROUP_SIZE, 3) for view in views]
    return sum(chamfer(a, b, objective.norm) for a, b in zip(*patches, strict=True)) / len(patches[0])


def pointcmae(views, objective, tokens, masks, **_):
    recovered = pointmae(views[:2], objective) + pointmae(views[2:], objective)
    total, count = 0.0, 0
    for i in range(len(masks[0])):
        for g in range(masks[0].shape[1]):
            if masks[0][i, g] and masks[1][i, g]:
                columns = [g] if objective.contrast == "diagonal" else range(masks[0].shape[1])
                apart = [1 - F.cosine_similarity(tokens[0][i, g], tokens[1][i, j], dim=0) for j in columns]
                total, count = total + sum(apart) / len(apart), count + 1
    return objective.reconstruction_weight * recovered + objective.contrast_weight * total / count


def branches(n, d):
    g = torch.Generator().manual_seed(4)
    return {
        "tokens": [draw(n, 6, 4, seed=5), draw(n, 6, 4, seed=6)],
        "masks": [torch.rand(n, 6, generator=g) < 0.6 for _ in range(2)],
    }


def cmae(**options):
    return lambda d: o.PointCMAE(GROUP_SIZE, "l2", 10.0, 3.0, **options)


def cross_entropy(views, label, **_):
    rows = [-torch.log_softmax(row, 0)[c] for row, c in zip(views[0], label.tolist(), strict=True) if c >= 0]
    return sum(rows) / len(rows)


SHARED = {"grouped": False, "width": 12, "exactly_two": False}
CASES = [
    Case("CrossEntropy", lambda d: o.CrossEntropy(), cross_entropy, context=labels, views=1, keeps="shuffle", grouped=False),
    Case("PointMAE", lambda d: o.PointMAE(GROUP_SIZE), pointmae, keeps="shuffle swap", **SHARED),
    Case("PointMAE-l1", lambda d: o.PointMAE(GROUP_SIZE, "l1"), pointmae, keeps="shuffle swap", **SHARED),
    Case("PointCMAE", cmae(), pointcmae, context=branches, views=4, keeps="shuffle", **SHARED),
    Case("PointCMAE-columns", cmae(contrast="all_columns"), pointcmae, context=branches, views=4, keeps="shuffle", **SHARED),
]  # fmt: skip
