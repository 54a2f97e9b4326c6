"""TrajViT (Zheng et al., "One Trajectory, One Token", ICCV 2025): tokens are things, followed through a clip.

Where the release leaves a choice: one pass through the blocks, a key mask that holds, one frequency ramp for each
coordinate. Trajectories come with the clip as a fourth channel; the model never makes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.backbones.encoding import Encoding
from manyviews.backbones.spacetime import Block, frames_of, in_time, started
from manyviews.backbones.weights import load_weights


class Pyramid(nn.Module):
    """Feature maps of several scales, each brought to `dim`, through one LayerNorm, to one size, and summed.

    Args:
        dim: width. widths: of the stages; each but the first halves the resolution of a map half as large as the image.
        stride: of the map that comes out.
    """

    def __init__(self, dim: int, widths: Sequence[int] = (64, 128, 256, 512), stride: int = 4) -> None:
        super().__init__()
        self.stride, stages, before = stride, [], 3
        for after in widths:
            stages.append(nn.Sequential(*_convolution(before, after, 2), *_convolution(after, after, 1)))
            before = after
        self.stages = nn.ModuleList(stages)
        self.to_dim = nn.ModuleList(nn.Linear(width, dim) for width in widths)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) to (n, h, w, dim), h = H / stride."""
        size = images.shape[2] // self.stride, images.shape[3] // self.stride
        total, x = None, images
        for stage, linear in zip(self.stages, self.to_dim, strict=True):
            x = stage(x)
            scaled = self.norm(linear(x.movedim(1, 3))).movedim(3, 1)
            scaled = F.interpolate(scaled, size, mode="bilinear", align_corners=False)
            total = scaled if total is None else total + scaled
        assert total is not None
        return total.movedim(1, 3)


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(max(1, after // 16), after), nn.ReLU()]


class Look(nn.Module):
    """One look of a latent at a trajectory's frames and at itself.

    Args:
        dim, heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.of_latent, self.of_input = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.out = (nn.Linear(dim, k * dim, bias=False) for k in (1, 2, 1))

    def forward(self, latent: Tensor, x: Tensor, keys: Tensor) -> Tensor:
        """What is added to latents (n, 1, dim) that look at x (n, T, dim); `keys` (n, 1, 1, 1 + T): what is there."""
        asks = self.of_latent(latent)
        key, value = self.kv(torch.cat([asks, self.of_input(x)], 1)).chunk(2, 2)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.q(asks), key, value))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        found: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return found


class Resampler(nn.Module):
    """One latent that looks at a trajectory's frames (a Perceiver resampler without feed-forward).

    Args:
        dim, heads: of the attention. looks: how often. frames: positions in time that are learned; a clip of another
            length gets them interpolated.
    """

    def __init__(self, dim: int, heads: int, looks: int, frames: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.time = nn.Parameter(0.02 * torch.randn(1, frames, 1, dim))
        self.looks = nn.ModuleList(Look(dim, heads) for _ in range(looks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """(n, dim) of n trajectories x (n, T, dim), of which frame t counts where present (n, T) is True."""
        x, latent = x + in_time(self.time, x.shape[1])[:, :, 0], self.latent.expand(len(x), -1, -1)
        keys = F.pad(present, (1, 0), value=True)[:, None, None]  # the latent itself is always seen
        for look in self.looks:
            latent = latent + look(latent, x, keys)
        resampled: Tensor = self.norm(latent[:, 0])
        return resampled


class TrajViT(nn.Module):
    """One token a trajectory: what it looks like, and where it is, over time; then a transformer over the set.

    Clips without trajectories (three channels) are cut into a regular grid, each cell a trajectory: a ViT3D of sorts.

    Args:
        frames: of the clips at training; other numbers are interpolated.
        dim, depth, heads: of the transformer; paper 512, 24, 16.
        widths: of the feature pyramid's stages. stride: of its map; trajectories are read at that resolution. Paper 4.
        looks: depth of the two resamplers; paper 2 (appearance in the large model: 4).
        grid: cells a side, for clips without trajectories. checkpoint: as in ViT3D.

    Attributes:
        width: dim. prefix_tokens: 1.
    """

    prefix_tokens = 1

    def __init__(
        self,
        frames: int = 16,
        dim: int = 512,
        depth: int = 12,
        heads: int = 8,
        widths: Sequence[int] = (64, 128, 256, 512),
        stride: int = 4,
        looks: int = 2,
        grid: int = 14,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {dim}")
        self.width, self.grid = dim, grid
        self.features = Pyramid(dim, widths, stride)
        self.appearance, self.position = (Resampler(dim, heads, looks, frames) for _ in range(2))
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.apply(started)
        load_weights(self, checkpoint)

    def no_weight_decay(self) -> list[str]:
        """Class token, latents, positions in time."""
        return [
            "class_token",
            *(f"{part}.{name}" for part in ("appearance", "position") for name in ("latent", "time")),
        ]

    def forward(self, clips: Tensor) -> Encoding:
        """(B, T, 4, H, W) to an Encoding: the class token and a token a trajectory; rows of none are masked."""
        frames = frames_of(clips)
        maps = self.features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        ids = self._ids(clips, maps.shape[2:4])
        looks, centres, present = trajectories(maps, ids)
        rows = present.any(2)
        tokens = maps.new_zeros(*rows.shape, self.width)
        if rows.any():
            seen = present[rows]
            where = sines(centres[rows], self.width)
            tokens[rows] = (self.appearance(looks[rows], seen) + self.position(where, seen)).to(tokens.dtype)
        x = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        mask = F.pad(rows, (1, 0), value=True)
        for block in self.blocks:
            x, _ = block(x, mask)
        return Encoding(x[:, 0], x, mask, prefix_tokens=1)

    def _ids(self, clips: Tensor, size: Sequence[int]) -> Tensor:
        """(B, T, h, w) int64 trajectories at the resolution of the map."""
        if clips.shape[2] > 3:
            return F.interpolate(clips[:, :, 3].float(), tuple(size), mode="nearest").round().long()
        y, x = (torch.arange(s, device=clips.device) * self.grid // s for s in size)
        cells = y[:, None] * self.grid + x + 1
        return cells.expand(*clips.shape[:2], *size)


def trajectories(maps: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each trajectory looks like in each frame, and where it is.

    Args:
        maps: (B, T, h, w, d) features. ids: (B, T, h, w), 1..M, 0 for none; M may differ from clip to clip.

    Returns:
        (B, M, T, d) mean features over its pixels, (B, M, T, 2) centres (row, column) as shares of the side, both 0
        where it is absent, and (B, M, T) bool, where it is there. Sums are in float32.
    """
    batch, steps, height, width, d = maps.shape
    count = int(ids.max()) + 1
    cell = (torch.arange(batch * steps, device=ids.device).view(batch, steps, 1, 1) * count + ids).flatten()
    y, x = (torch.arange(s, device=ids.device) / s for s in (height, width))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).expand(batch, steps, -1, -1, -1)
    with torch.autocast(maps.device.type, enabled=False):
        rows = torch.cat([maps.float(), places, torch.ones_like(places[..., :1])], 4).flatten(0, 3)
        sums = rows.new_zeros(batch * steps * count, d + 3).index_add(0, cell, rows)
    sums = sums.view(batch, steps, count, d + 3)[:, :, 1:].transpose(1, 2)
    area = sums[..., -1:]
    means = sums[..., :-1] / area.clamp(min=1)
    return means[..., :d], means[..., d:], area[..., 0] > 0


def sines(places: Tensor, dim: int) -> Tensor:
    """(.., dim) sines and cosines of places (.., 2) in [0, 1): half of them for each coordinate, over 2 pi."""
    steps = torch.arange(dim // 4, device=places.device)
    angle = 2 * math.pi * places[..., None] * torch.exp(steps * (math.log(100.0) / max(1, dim // 4 - 1)))
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
