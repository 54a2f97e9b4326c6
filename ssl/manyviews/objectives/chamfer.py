"""Reconstruction of point patches: Point-MAE (Pang et al., ECCV 2022) and Point-CMAE (Ren et al., ACCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, choice
from manyviews.similarity import unit


def chamfer(a: Tensor, b: Tensor, norm: Literal["l2", "l1"] = "l2") -> Tensor:
    """(B,): the Chamfer distance of each pair of clouds a (B, n, 3) and b (B, m, 3).

    `l2`: mean of min_m d + mean of min_n d, d the squared distance; the two directions summed, no root.
    `l1`: half the sum of the mean roots of both.
    """
    d = (a[:, :, None] - b[:, None]).square().sum(3)
    there, back = d.amin(2), d.amin(1)
    if norm == "l1":
        # the root's slope at 0 is infinite
        return ((there + 1e-12).sqrt().mean(1) + (back + 1e-12).sqrt().mean(1)) / 2
    return there.mean(1) + back.mean(1)


class PointMAE(Objective):
    """L = mean over masked patches of the Chamfer distance of what was predicted and what was there.

    Views: predictions (n, m K 3) and targets (n, m K 3): m patches of K points of each cloud, relative coordinates.

    Args:
        group_size: K. norm: of the Chamfer distance; paper `l2`, see `chamfer`.
    """

    batch_coupled: ClassVar[bool] = False

    def __init__(self, group_size: int = 32, norm: Literal["l2", "l1"] = "l2") -> None:
        super().__init__()
        self.group_size = group_size
        self.norm: Literal["l2", "l1"] = choice("norm", norm, ("l2", "l1"))  # type: ignore[assignment]

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """The equation."""
        loss = self.reconstruction(views[0], views[1], rows)
        self.diagnostics = {"chamfer_1000": 1000 * loss.detach()}
        return loss

    def reconstruction(self, predicted: Tensor, target: Tensor, rows: Rows) -> Tensor:
        """The mean over patches of all ranks."""
        if predicted.shape[1] % (3 * self.group_size):
            raise ValueError(f"{predicted.shape[1]} numbers are no patches of {self.group_size} points")
        a, b = (view.reshape(-1, self.group_size, 3) for view in (predicted, target))
        return rows.mean(chamfer(a, b, self.norm).view(len(predicted), -1).mean(1))


class PointCMAE(PointMAE):
    """L = w_r (R_1 + R_2) + w_c mean over {(b, i): masked in both} of 1 - <f_1[b, i], f_2[b, i]>.

    R_k is Point-MAE's loss of branch k. f_k[b, i] is branch k's unit decoder feature of patch i: only where a patch was
    masked twice, so that both branches had to imagine it, shall they agree. No negatives, no stop-gradient:
    reconstruction keeps the features from collapsing. Views: predictions and targets of branch 1, then of branch 2.

    Args:
        group_size, norm: as in PointMAE.
        reconstruction_weight: w_r; released 1000. contrast_weight: w_c; released 1, which hardly moves anything.
        contrast: `diagonal` as the abstract describes; `all_columns` as released: each twice-masked feature against
            the features of all patches of the other branch.
    """

    fewest: ClassVar[int] = 4

    def __init__(
        self,
        group_size: int = 32,
        norm: Literal["l2", "l1"] = "l2",
        reconstruction_weight: float = 1000.0,
        contrast_weight: float = 1.0,
        contrast: Literal["diagonal", "all_columns"] = "diagonal",
    ) -> None:
        super().__init__(group_size, norm)
        self.reconstruction_weight, self.contrast_weight = reconstruction_weight, contrast_weight
        self.contrast = choice("contrast", contrast, ("diagonal", "all_columns"))

    def loss(  # type: ignore[override]
        self, views: list[Tensor], rows: Rows, tokens: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> Tensor:
        """`tokens`: features (n, G, d) of both branches, in their places; `masks`: (n, G) bool of both, True masked."""
        recovered = sum(self.reconstruction(a, b, rows) for a, b in zip(views[::2], views[1::2], strict=True))
        contrast, twice = self.agreement(tokens, masks, rows)
        self.diagnostics = {
            "chamfer_1000": 500 * torch.as_tensor(recovered).detach(),
            "disagreement": contrast.detach(),
            "masked_twice": rows.mean(twice.to(contrast.dtype).mean(1)).detach(),
        }
        return self.reconstruction_weight * recovered + self.contrast_weight * contrast

    def agreement(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], rows: Rows) -> tuple[Tensor, Tensor]:
        """The contrastive term, and the co-mask; 0 where no patch is masked twice."""
        f1, f2 = (unit(token) for token in tokens)
        twice = masks[0] & masks[1]
        other = f2 if self.contrast == "diagonal" else f2.mean(1, keepdim=True)
        return rows.mean(1 - (f1 * other).sum(2), weight=twice.to(f1.dtype)), twice
