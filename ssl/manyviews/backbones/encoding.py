"""What every backbone returns, whatever it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MODALITIES = ("image", "points", "video")
"""What backbones see, as a batch names it; texts have towers of their own."""


def views_of(batch: dict[str, Any]) -> list[Tensor]:
    """The views that a backbone embeds: those of a batch's images, point clouds or videos, whichever it holds.

    Trajectories of videos ride along as a fourth channel (B, T, 4, H, W), so that a view stays one tensor.

    Raises:
        ValueError: if it holds none.
    """
    for name in MODALITIES:
        if name in batch:
            views: list[Tensor] = batch[name]
            if name == "video" and "tracks" in batch:
                return [with_tracks(view, ids) for view, ids in zip(views, batch["tracks"], strict=True)]
            return views
    raise ValueError(f"a batch needs views under one of {', '.join(MODALITIES)}; it has {', '.join(batch)}")


def with_tracks(frames: Tensor, ids: Tensor) -> Tensor:
    """(B, T, 4, H, W) float: frames (B, T, 3, H, W), and the number of each pixel's trajectory (B, T, h, w)."""
    numbers = F.interpolate(ids.float(), frames.shape[3:], mode="nearest")
    return torch.cat([frames.float(), numbers[:, :, None]], 2)


@dataclass
class Encoding:
    """Features of a batch.

    Attributes:
        pooled: (B, D) one vector a sample; what evaluation uses.
        tokens: (B, T, d) patch, frame or word features, prefix tokens first; None if the backbone has none.
        token_mask: (B, T) bool, True where a token is valid; None if all are.
        prefix_tokens: how many leading tokens are no patches (class token, registers).
    """

    pooled: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    prefix_tokens: int = 0

    @classmethod
    def of(cls, output: Any) -> Encoding:
        """An Encoding as it is, or a plain (B, D) tensor as the pooled features of one."""
        if isinstance(output, cls):
            return output
        if isinstance(output, torch.Tensor) and output.ndim == 2:
            return cls(pooled=output)
        found = f"a tensor {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise TypeError(f"a backbone must return an Encoding or a (B, D) tensor, got {found}")
