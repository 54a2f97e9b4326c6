"""Samples that shall meet in a batch, found by embeddings: nearest neighbours, and SaHa's owners.

What these give is a `.npy` of cells for `data.cells`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyviews.similarity import hardest, unit

Cells = NDArray[np.int64]


def neighbour_cells(images: Tensor, k: int = 3, group: Tensor | None = None) -> Cells:
    """(n, 1 + k): each sample and its k nearest others by cosine (NegCLIP's hard images).

    Args:
        images: (n, D). k: neighbours. group: (n,), samples of equal group >= 0 are no neighbours of each other.

    A sample with fewer than k candidates has -1 in their places.
    """
    u = unit(images)
    if k < 1 or k >= len(u):
        raise ValueError(f"k must be in [1, {len(u) - 1}], got {k}")
    spare = 0 if group is None else int(group[group >= 0].bincount().max()) if bool((group >= 0).any()) else 0
    found = hardest(u, u, min(len(u), 1 + k + spare)).cpu()
    own = torch.arange(len(u))[:, None]
    wrong = found == own
    if group is not None:
        wrong |= (group[found] == group[:, None]) & (group[:, None] >= 0)
    order = wrong.long().sort(dim=1, stable=True).indices[:, :k]
    chosen = torch.where(wrong.gather(1, order), -1, found.gather(1, order))
    return torch.cat([own, chosen], 1).numpy()


def owner_cells(queries: Tensor, targets: Tensor, k: int = 15, m: int = 3) -> Cells:
    """(cells, 1 + k): SaHa's hard negatives (Ju and Lee, 2025); every sample stands in one cell.

    Target i is the positive of query i, its owner. Of the 2 k m targets nearest to a query the first k m free owners
    are kept, and of those the k that are *least* like the query themselves: a target near my query whose owner is
    nearly the same query is likely no negative at all.

    Args:
        queries, targets: (n, D) embeddings of pairs. k: hard negatives of a cell. m: how many candidates for each.

    What is left over at the end is put together in cells of its own; the last may be short (-1 in the free places).
    """
    q, t = unit(queries).cpu(), unit(targets).cpu()
    n = len(q)
    if len(t) != n or k < 1 or m < 1:
        raise ValueError(f"queries and targets must be pairs, k and m at least 1; got {n}, {len(t)}, k={k}, m={m}")
    pool = hardest(q, t, min(n, 2 * k * m + 1)).numpy()
    free = np.ones(n, bool)
    cells: list[list[int]] = []
    left: list[int] = []
    for i in range(n):
        if not free[i]:
            continue
        owners = [int(j) for j in pool[i] if j != i and free[j]][: k * m]
        if len(owners) < k:
            left.append(i)
            free[i] = False
            continue
        alike = q[owners] @ q[i]
        chosen = [owners[int(j)] for j in alike.argsort(stable=True)[:k]]
        cells.append([i, *chosen])
        free[[i, *chosen]] = False
    size = k + 1
    cells += [left[at : at + size] for at in range(0, len(left), size)]
    return np.array([cell + [-1] * (size - len(cell)) for cell in cells], np.int64)
