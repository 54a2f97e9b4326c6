"""What every backbone returns, whatever it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Gather

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


def width_of(backbone: nn.Module) -> int:
    """D of a backbone's pooled features (B, D).

    Raises:
        ValueError: if it does not say, by an attribute `width`.
    """
    width = getattr(backbone, "width", None)
    if not isinstance(width, int):
        name = type(backbone).__name__
        raise ValueError(f"{name} is no backbone: one needs an attribute `width`, the D of its pooled features (B, D)")
    return width


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

    def __len__(self) -> int:
        return len(self.pooled)

    def patches(self) -> tuple[Tensor, Tensor]:
        """(B, T, d) tokens without the prefix tokens, and (B, T) bool, which of them are valid.

        Raises:
            ValueError: if the backbone gives no tokens.
        """
        if self.tokens is None:
            raise ValueError("tokens are compared, and the backbone gives none")
        tokens = self.tokens[:, self.prefix_tokens :]
        if self.token_mask is None:
            return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return tokens, self.token_mask[:, self.prefix_tokens :]

    def rows(self, rows: slice | Tensor) -> Encoding:
        """Those of some samples."""
        return self._each(lambda tensor: tensor[rows])

    def chunk(self, parts: int) -> list[Encoding]:
        """Cut into equal parts: the views that went through the backbone together."""
        size = len(self) // parts
        return [self.rows(slice(part * size, (part + 1) * size)) for part in range(parts)]

    @classmethod
    def cat(cls, parts: Sequence[Encoding]) -> Encoding:
        """One after the other."""
        pooled = torch.cat([part.pooled for part in parts])
        tokens = [part.tokens for part in parts if part.tokens is not None]
        masks = [part.token_mask for part in parts if part.token_mask is not None]
        joined, mask = (torch.cat(found) if found else None for found in (tokens, masks))
        return cls(pooled, joined, mask, parts[0].prefix_tokens)

    @classmethod
    def of_parts(cls, parts: Sequence[Tensor]) -> Encoding:
        """Of pooled features alone, or of these, tokens without a prefix and their mask."""
        pooled, *more = parts
        return cls(pooled, more[0], more[1]) if more else cls(pooled)

    def gather(self, gather: Gather) -> Encoding:
        """Those of all ranks, in rank order."""
        if gather.world == 1:
            return self
        rows = gather(len(self))
        return self._each(lambda x: rows.gather(x.byte()).bool() if x.dtype == torch.bool else rows.gather(x))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Encoding:
        tokens, mask = (None if each is None else change(each) for each in (self.tokens, self.token_mask))
        return Encoding(change(self.pooled), tokens, mask, self.prefix_tokens)

    @classmethod
    def of(cls, output: Any) -> Encoding:
        """An Encoding as it is, or a plain (B, D) tensor as the pooled features of one."""
        if isinstance(output, cls):
            return output
        if isinstance(output, torch.Tensor) and output.ndim == 2:
            return cls(pooled=output)
        found = f"a tensor {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise TypeError(f"a backbone must return an Encoding or a (B, D) tensor, got {found}")
