"""Clips as space-time patches: ViT3D, the factorised ViViT, frame averaging, and two ways to fewer tokens.

Clips are (B, T, 3, H, W); a fourth channel, the trajectories, is left alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.backbones.encoding import Encoding, width_of
from manyviews.backbones.weights import load_weights


class Attention(nn.Module):
    """Multi-head self-attention that leaves masked keys out, and weighs keys that stand for several tokens.

    Args:
        dim: width. heads: of it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be a multiple of heads ({heads})")
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, n, dim) to the same, and the keys' mean over heads (B, n, dim / heads).

        Args:
            mask: (B, n) bool, True where a token may be looked at.
            sizes: (B, n), how many tokens each stands for: ln of it is added to the logits of its key (proportional
                attention).
        """
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if sizes is None else sizes.log()[:, None, None].to(q.dtype)
        if mask is not None:
            hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)[:, None, None]
            bias = hidden if bias is None else bias + hidden
        if bias is not None:
            bias = bias.expand(-1, -1, x.shape[1], -1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended, k.mean(1)


class Block(nn.Module):
    """A pre-norm transformer block; with `merge` it joins tokens between attention and MLP (ToMe)."""

    def __init__(self, dim: int, heads: int, merge: int = 0) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(dim), Attention(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.merge = merge

    def forward(
        self, x: Tensor, mask: Tensor | None = None, sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, n, dim), the first a class token, and their sizes, to fewer or as many."""
        attended, keys = self.attention(self.norm1(x), mask, sizes)
        x = x + attended
        if self.merge:
            if sizes is None:
                sizes = torch.ones(x.shape[:2], device=x.device, dtype=x.dtype)
            x, sizes = merged(x, sizes, keys, self.merge)
        return x + self.mlp(self.norm2(x)), sizes


def merged(x: Tensor, sizes: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Token merging (Bolya et al., ICLR 2023, section 3): the `count` most similar pairs become their weighted means.

    Every second token, from the third on, may join the most similar one of the others; at most half of them can go. The
    first token, the class token, stays first and is never joined.

    Args:
        x: (B, n, dim). sizes: (B, n). keys: (B, n, d), by which similarity goes.
    """
    tokens = x.shape[1]
    count = min(count, (tokens - 1) // 2)
    if count <= 0:
        return x, sizes
    with torch.no_grad():
        metric = F.normalize(keys.float(), dim=2)
        scores = metric[:, ::2] @ metric[:, 1::2].mT  # even places offer themselves to odd ones
        scores[:, 0] = -torch.inf
        best, partner = scores.max(2)
        order = best.argsort(1, descending=True)
        going, staying = order[:, :count], order[:, count:].sort(1).values  # the class token, at -inf, stays
        into = partner.gather(1, going)
    even, odd, size_even, size_odd = x[:, ::2], x[:, 1::2], sizes[:, ::2], sizes[:, 1::2]

    def pick(t: Tensor, places: Tensor) -> Tensor:
        return t.gather(1, places[..., None].expand(-1, -1, t.shape[2]))

    weighted = (odd * size_odd[..., None]).scatter_add(
        1, into[..., None].expand(-1, -1, x.shape[2]), pick(even * size_even[..., None], going)
    )
    grown = size_odd.scatter_add(1, into, size_even.gather(1, going))
    joined = torch.cat([pick(even, staying), weighted / grown[..., None]], 1)
    return joined, torch.cat([size_even.gather(1, staying), grown], 1)


class TokenLearner(nn.Module):
    """S tokens of n, each a weighted mean over them by a learned map (TokenLearner v1.1; Ryoo et al., NeurIPS 2021).

    Args:
        dim: width. tokens: S. hidden: of the MLP that makes the maps.
    """

    def __init__(self, dim: int, tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, dim) to (B, S, dim); the order of the n does not matter."""
        learned: Tensor = self.maps(x).softmax(1).mT @ x
        return learned


def tubes(dim: int, tubelet: int, patch: int) -> nn.Conv3d:
    """The space-time patch embedding."""
    return nn.Conv3d(3, dim, (tubelet, patch, patch), (tubelet, patch, patch))


def frames_of(clips: Tensor) -> Tensor:
    """(B, T, 3, H, W), the trajectories left out.

    Raises:
        ValueError: if these are no clips.
    """
    if clips.ndim != 5:
        raise ValueError(f"a video backbone takes clips (B, T, 3, H, W), got {tuple(clips.shape)}")
    return clips[:, :, :3]


class ViT3D(nn.Module):
    """A ViT over all tubes of a clip at once.

    Args:
        image_size, frames: of the clips; longer ones get their positions interpolated in time.
        patch, tubelet: of a tube; paper 16 and 2. dim, depth, heads: of the transformer.
        merge: tokens that ToMe joins in every block; 0: none.
        learner: tokens that TokenLearner leaves after half of the blocks; 0: all.
        checkpoint: weights, such as those of a run: see `manyviews.backbones.weights`.

    Attributes:
        width: dim. prefix_tokens: 1.
    """

    prefix_tokens = 1

    def __init__(
        self,
        image_size: int = 224,
        frames: int = 16,
        patch: int = 16,
        tubelet: int = 2,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        merge: int = 0,
        learner: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch or frames % tubelet:
            raise ValueError(f"{image_size} px and {frames} frames do not divide into tubes of {patch} and {tubelet}")
        if merge and learner:
            raise ValueError("give merge or learner: each decides alone how many tokens there are")
        self.width, self.tubelet, self.patch = dim, tubelet, patch
        self.embed = tubes(dim, tubelet, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.space = nn.Parameter(0.02 * torch.randn(1, 1, (image_size // patch) ** 2, dim))
        self.time = nn.Parameter(torch.zeros(1, frames // tubelet, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, merge) for _ in range(depth))
        self.learner, self.learn_at = TokenLearner(dim, learner) if learner else None, depth // 2
        self.norm = nn.LayerNorm(dim)
        self.apply(started)
        load_weights(self, checkpoint)

    def no_weight_decay(self) -> list[str]:
        """Positions and class token."""
        return ["class_token", "space", "time"]

    def inflate(self, kernel: Tensor, space: Tensor | None = None) -> None:
        """Starts from an image ViT: its patch kernel (dim, 3, p, p), spread evenly over time, and its positions.

        A clip that stands still then gives the tokens that the image gives.

        Args:
            kernel: of the image model's patch embedding. space: (n, dim) positions of its patches.
        """
        with torch.no_grad():
            self.embed.weight.copy_(kernel[:, :, None].expand_as(self.embed.weight) / self.tubelet)
            if space is not None:
                self.space.copy_(space[None, None])
            self.time.zero_()

    def tokens(self, clips: Tensor) -> Tensor:
        """(B, T', n, dim): tubes with their positions."""
        found: Tensor = self.embed(frames_of(clips).transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        return found + self.space + in_time(self.time, found.shape[1])

    def forward(self, clips: Tensor) -> Encoding:
        """(B, T, 3, H, W) to an Encoding: the class token, and all tokens that are left."""
        x = self.tokens(clips).flatten(1, 2)
        x, sizes = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1), None
        for number, block in enumerate(self.blocks):
            if self.learner is not None and number == self.learn_at:
                x = torch.cat([x[:, :1], self.learner(x[:, 1:])], 1)
            x, sizes = block(x, None, sizes)
        x = self.norm(x)
        return Encoding(x[:, 0], x, prefix_tokens=1)


def in_time(table: Tensor, steps: int) -> Tensor:
    """A table of positions (1, T', 1, dim), linearly interpolated to another number of steps."""
    if table.shape[1] == steps:
        return table
    return F.interpolate(table[:, :, 0].mT, steps, mode="linear", align_corners=False).mT[:, :, None]


class ViViT(nn.Module):
    """The factorised encoder (Arnab et al., ICCV 2021, model 2): each time step by itself, then the steps.

    Each half ends in a LayerNorm.

    Args:
        image_size, frames, patch, tubelet, dim, heads, checkpoint: as in ViT3D. depth: half of it in space, half in
            time.

    Attributes:
        width: dim.
    """

    prefix_tokens = 1

    def __init__(
        self,
        image_size: int = 224,
        frames: int = 16,
        patch: int = 16,
        tubelet: int = 2,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.width = dim
        self.embed = tubes(dim, tubelet, patch)
        self.space = nn.Parameter(0.02 * torch.randn(1, 1, (image_size // patch) ** 2, dim))
        self.time = nn.Parameter(0.02 * torch.randn(1, frames // tubelet, 1, dim))
        self.of_step, self.of_clip = (nn.Parameter(0.02 * torch.randn(1, 1, dim)) for _ in range(2))
        self.spatial = nn.ModuleList(Block(dim, heads) for _ in range(depth - depth // 2))
        self.temporal = nn.ModuleList(Block(dim, heads) for _ in range(depth // 2))
        self.step_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.apply(started)
        load_weights(self, checkpoint)

    def no_weight_decay(self) -> list[str]:
        """Positions and class tokens."""
        return ["space", "time", "of_step", "of_clip"]

    def forward(self, clips: Tensor) -> Encoding:
        """(B, T, 3, H, W) to an Encoding: the clip's class token, and one token a time step."""
        x = self.embed(frames_of(clips).transpose(1, 2)).flatten(3).permute(0, 2, 3, 1) + self.space
        batch, steps = x.shape[:2]
        x = self.step_norm(through(self.spatial, self.of_step, x.flatten(0, 1))[:, 0]).view(batch, steps, -1)
        x = through(self.temporal, self.of_clip, x + in_time(self.time, steps)[:, :, 0])
        x = self.norm(x)
        return Encoding(x[:, 0], x, prefix_tokens=1)


def through(layers: nn.ModuleList, class_token: Tensor, x: Tensor) -> Tensor:
    """Tokens behind a class token through blocks."""
    x = torch.cat([class_token.expand(len(x), -1, -1), x], 1)
    for block in layers:
        x, _ = block(x)
    return x


class FrameMean(nn.Module):
    """An image backbone on some frames, its features averaged: what a clip is without motion.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        frames: `all`, or `middle` for one frame.

    Attributes:
        width: of the backbone.
    """

    def __init__(self, backbone: nn.Module, frames: Literal["all", "middle"] = "all") -> None:
        super().__init__()
        if frames not in ("all", "middle"):
            raise ValueError(f"frames must be 'all' or 'middle', got {frames!r}")
        self.backbone, self.frames = backbone, frames
        self.width = width_of(backbone)

    def forward(self, clips: Tensor) -> Encoding:
        """(B, T, 3, H, W) to an Encoding with one token a frame."""
        clips = frames_of(clips)
        if self.frames == "middle":
            clips = clips[:, clips.shape[1] // 2, None]
        found = Encoding.of(self.backbone(clips.flatten(0, 1))).pooled.view(*clips.shape[:2], -1)
        return Encoding(found.mean(1), found)


def started(module: nn.Module) -> None:
    """Weights of a ViT at the start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
