"""Label-free readings of a representation. All take un-normalised (n, D) tensors and compute in float32 or better."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.similarity import full_precision, unit


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of the unit embeddings of two views (Wang and Isola, ICML 2020). 0: equal; 2: unrelated."""
    return 2 - 2 * (unit(a) * unit(b)).sum(1).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """log mean over i < j of exp(-t |z_i - z_j|^2) of unit embeddings; 0: collapsed, -2t: spread (Wang and Isola)."""
    u = unit(z)
    squared = 2 - 2 * (u @ u.T)
    i, j = torch.triu_indices(len(u), len(u), offset=1, device=u.device)
    pairs = -t * squared[i, j]
    return torch.logsumexp(pairs, 0) - torch.log(torch.tensor(float(len(pairs)), device=u.device))


def tolerance(z: Tensor, label: Tensor) -> Tensor:
    """Mean cosine of pairs of different images of one class (Wang and Liu, CVPR 2021). Labels of -1 take no part."""
    u, known = unit(z), label >= 0
    same = (label[:, None] == label) & known & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    return (u @ u.T)[same].mean()


def modality_gap(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the mean unit embeddings of two views or modalities, 0 to 2 (Liang et al., NeurIPS 2022)."""
    gap: Tensor = torch.linalg.vector_norm(unit(a).mean(0) - unit(b).mean(0))
    return gap


def duplicates(items: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the rows (n, L) that stand there more than once, and the floor they put under a contrastive loss.

    Of g equal captions none can be told from the others: their rows of the loss cannot go below ln g.
    """
    _, place, counts = items.unique(dim=0, return_inverse=True, return_counts=True)
    alike = counts[place].double()
    return (alike > 1).double().mean(), alike.log().mean()


def rankme(z: Tensor, centre: bool = False, eps: float = 1e-7) -> Tensor:
    """RankMe (Garrido et al., ICML 2023): exp of the entropy of the singular values. In [1, min(n, D)].

    Args:
        z: (n, D), not normalised.
        centre: take the mean away first; without, a large common vector makes the rank look low.
        eps: added to each share, as in the paper.
    """
    z = full_precision(z)
    values = torch.linalg.svdvals(z - z.mean(0) if centre else z)
    p = values / values.sum() + eps
    return torch.exp(-(p * p.log()).sum())


def spread(z: Tensor) -> Tensor:
    """Mean over dimensions of the unit embeddings' deviation, times sqrt(D): 0 is collapsed, about 1 spread evenly."""
    u = unit(z)
    return u.std(0).mean() * math.sqrt(u.shape[1])


def similarities(projections: Tensor, limit: int = 512) -> tuple[Tensor, Tensor]:
    """Cosines of positive pairs (views 0 and 1 of an image) and of negative ones (view 0 against other images' view 1).

    Args:
        projections: (V, n, D). limit: images looked at.
    """
    a, b = unit(projections[0, :limit]), unit(projections[1, :limit])
    s = a @ b.T
    others = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    return s.diagonal(), s[others]
