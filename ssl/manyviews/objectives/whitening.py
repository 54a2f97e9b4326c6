"""Whitening: W-MSE (Ermolov et al., ICML 2021) and shuffled group whitening (Zhuo et al., ACL 2023)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective
from manyviews.similarity import unit


class WMSE(Objective):
    r"""The distance of the views of an image after whitening, which no collapsed batch survives. V >= 2.

    .. math:: L = \mathrm{mean}_{v < w}\, \mathrm{mean}_i\, (2 - 2 \cos(W z^v_i, W z^w_i)), \quad W = L^{-1},\
              \mathrm{Cov}(z) = L L^T

    Each view is whitened on its own, in random sub-batches that all views share, with unbiased covariance; averaged
    over several partitions. The partitions are the same on every rank, which whitens the gathered batch.

    Args:
        size: rows of a sub-batch, larger than the embedding is wide. Paper: 128, ImageNet 256.
        partitions: how many are averaged. Paper: 1 (CIFAR), 4.
        normalise: False: the plain squared distance, averaged over dimensions.
        eps: shrinkage of the covariance towards the identity.
    """

    calls: Tensor

    def __init__(self, size: int = 128, partitions: int = 1, normalise: bool = True, eps: float = 0.0) -> None:
        super().__init__()
        self.size, self.partitions, self.normalise, self.eps = size, partitions, normalise, eps
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """Raw views (n, D) with N larger than D."""
        total, width = rows.total, views[0].shape[1]
        size = min(self.size, total)
        if size <= width:
            raise ValueError(
                f"WMSE whitens {size} rows of width {width}: a sub-batch must hold more rows than dimensions; raise "
                "the batch and whitening size, or narrow the projector"
            )
        z = [rows.gather_with_gradient(view) for view in views]
        losses = []
        for _partition in range(self.partitions):
            generator = torch.Generator().manual_seed(int(self.calls))
            self.calls.add_(1)
            order = torch.randperm(total, generator=generator).to(z[0].device)
            for part in order[: total // size * size].split(size):
                white = [cholesky_whiten(view[part], self.eps) for view in z]
                losses += [self._distance(a, b) for a, b in combinations(white, 2)]
        return torch.stack(losses).mean()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (2 - 2 * (unit(a) * unit(b)).sum(1)).mean() if self.normalise else (a - b).square().mean()


def cholesky_whiten(z: Tensor, eps: float = 0.0) -> Tensor:
    """(n, D) rows of covariance I (over n - 1)."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    lower, failed = torch.linalg.cholesky_ex((1 - eps) * covariance + eps * eye)
    lower = torch.where(failed > 0, torch.nan, lower)  # a singular batch, or NaN: the step can be skipped
    white: Tensor = torch.linalg.solve_triangular(lower, centred.T, upper=False).T
    return white


class GroupWhitened(Objective):
    r"""Shuffled group whitening before another objective: each way to group the dimensions is one more view.

    A copy permutes the dimensions of a view, whitens groups of them over the batch (ZCA), and puts them back. V views
    become V * copies views of the host, which must take as many.

    Args:
        host: an objective over views, such as MVInfoNCE or PairwiseViews.
        groups: G, how many the dimensions are cut into.
        copies: of each view. Paper: 3 of one forward pass.
        eps: added to the covariance.
    """

    fewest = 1
    calls: Tensor

    def __init__(self, host: Objective, groups: int, copies: int = 3, eps: float = 1e-5) -> None:
        super().__init__()
        self.host, self.groups, self.copies, self.eps = host, groups, copies, eps
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def loss(self, views: list[Tensor], rows: Rows, **context: Any) -> Tensor:
        """Raw views (n, D), D a multiple of the groups."""
        generator = torch.Generator().manual_seed(int(self.calls))
        self.calls.add_(1)
        orders = [torch.randperm(views[0].shape[1], generator=generator) for _ in range(self.copies)]
        white = [group_whiten(z, self.groups, order.to(z.device), rows, self.eps) for order in orders for z in views]
        loss = self.host.loss(white, rows, **context)
        self.diagnostics = dict(self.host.diagnostics)
        return loss

    @override
    def takes(self) -> set[str]:
        return self.host.takes()


def group_whiten(z: Tensor, groups: int, order: Tensor, rows: Rows, eps: float = 1e-5) -> Tensor:
    """(n, D): ZCA over the rows of all ranks (biased covariance) of each group of dimensions taken in `order`."""
    if z.shape[1] % groups:
        raise ValueError(f"{z.shape[1]} dimensions do not divide into {groups} groups")
    parts = z[:, order].view(len(z), groups, -1).transpose(0, 1)  # (G, n, D / G)
    centred = parts - rows.sum_with_gradient(parts.sum(1, keepdim=True)) / rows.total
    covariance = rows.sum_with_gradient(centred.transpose(1, 2) @ centred) / rows.total
    eye = torch.eye(covariance.shape[-1], dtype=z.dtype, device=z.device)
    white = centred @ inverse_root(covariance + eps * eye)
    return white.transpose(0, 1).flatten(1)[:, order.argsort()]


def inverse_root(matrix: Tensor) -> Tensor:
    """(..., d, d): the inverse square root of symmetric positive definite matrices, with a gradient without poles."""
    root: Tensor = _InverseRoot.apply(matrix)
    return root


class _InverseRoot(torch.autograd.Function):
    """Autograd through eigh divides by differences of eigenvalues; the divided differences of x^-1/2 do not."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        root = values.clamp_min(1e-12).sqrt()  # rounding may give a negative one
        ctx.save_for_backward(root, vectors)
        inverse: Tensor = vectors @ torch.diag_embed(1 / root) @ vectors.mT
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        root, vectors = ctx.saved_tensors
        a, b = root[..., :, None], root[..., None, :]
        inner = vectors.mT @ grads[0] @ vectors * (-1 / (a * b * (a + b)))
        gradient: Tensor = vectors @ inner @ vectors.mT
        return (gradient + gradient.mT) / 2
