"""Point clouds as patches: farthest-point sampling, neighbourhoods, mini-PointNet tokens, a transformer over them.

As in Point-BERT (Yu et al., CVPR 2022) and Point-MAE (Pang et al., ECCV 2022). Geometry is float32 whatever the
precision of the rest, in plain torch; a row of NaN in a cloud is no point and is never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from manyviews.backbones.encoding import Encoding
from manyviews.backbones.published import State
from manyviews.backbones.weights import load_weights

CELLS = 2**25
"""Distances held at a time."""


@torch.no_grad()
def farthest_points(points: Tensor, count: int) -> Tensor:
    """(B, count) indices by farthest-point sampling, from the first valid point on; ties go to the lowest index.

    A cloud with fewer valid points than `count` gives some of them again.

    Args:
        points: (B, N, 3), invalid rows NaN.
    """
    points = points.float()
    valid = ~points[..., 0].isnan()
    points = points.nan_to_num()
    chosen = torch.zeros(len(points), count, dtype=torch.int64, device=points.device)
    last = valid.to(torch.uint8).argmax(1)
    nearest = torch.where(valid, torch.inf, -1.0)
    rows = torch.arange(len(points), device=points.device)
    for k in range(count):
        chosen[:, k] = last
        distance = (points - points[rows, last, None]).square().sum(2)
        nearest = torch.minimum(nearest, distance)  # what is no point stays at -1
        last = nearest.argmax(1)
    return chosen


@torch.no_grad()
def nearest_points(centres: Tensor, points: Tensor, count: int) -> Tensor:
    """(B, G, count) indices of the points nearest to each centre, nearest first.

    Where a cloud has fewer valid points, the nearest one stands in for the missing.

    Args:
        centres: (B, G, 3). points: (B, N, 3), invalid rows NaN.
    """
    points, valid = points.float().nan_to_num(), ~points[..., 0].isnan()
    step = max(1, CELLS // (len(points) * points.shape[1]))
    found = []
    for part in centres.float().split(step, 1):
        distance = _squared(part, points).masked_fill(~valid[:, None], torch.inf)
        near, index = distance.topk(min(count, points.shape[1]), largest=False)
        found.append(torch.where(near.isinf(), index[..., :1], index))
    index = torch.cat(found, 1)
    return torch.cat([index, index[..., :1].expand(-1, -1, count - index.shape[2])], 2)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """(B, G, N) squared distances."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


@dataclass
class Patches:
    """A cloud cut into G overlapping neighbourhoods of K points.

    Attributes:
        relative: (B, G, K, 3) coordinates relative to the centre. centres: (B, G, 3).
    """

    relative: Tensor
    centres: Tensor


def group(points: Tensor, groups: int, size: int) -> Patches:
    """Neighbourhoods of `size` points around `groups` centres by farthest-point sampling."""
    with torch.autocast(points.device.type, enabled=False):
        rows = torch.arange(len(points), device=points.device)[:, None]
        centres = points[rows, farthest_points(points, groups)].float()
        near = points[rows[..., None], nearest_points(centres, points, size)].float()
        return Patches(near - centres[:, :, None], centres)


class MiniPointNet(nn.Module):
    """(B, G, K, 3) to a token (B, G, dim) for each patch: shared MLPs and maxima over its points."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 256))
        # Of a point's own features and of the maximum over its patch, side by side in the papers; the latter's share
        # is the same for all points of a patch and computed once.
        self.own, self.patch = nn.Linear(256, 512), nn.Linear(256, 512, bias=False)
        self.second = nn.Sequential(nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, dim))

    def forward(self, relative: Tensor) -> Tensor:
        """Order and number of a patch's points do not matter, beyond which ones there are."""
        patches = relative.shape[:3]
        local = self.first(relative.flatten(0, 2))  # one row a point: a few large products
        whole = self.patch(local.view(*patches, -1).amax(2))
        mixed = self.own(local).view(*patches, -1) + whole[:, :, None]
        tokens: Tensor = self.second(mixed.flatten(0, 2)).view(*patches, -1)
        return tokens.amax(2)


def position_mlp(dim: int) -> nn.Sequential:
    """Centres (.., 3) to what is added to the tokens before every block."""
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))


def blocks(dim: int, depth: int, heads: int, drop_path: float = 0.0) -> nn.ModuleList:
    """Pre-norm transformer blocks; stochastic depth grows linearly to `drop_path`."""
    rates = torch.linspace(0, drop_path, depth).tolist()
    # torch's LayerNorm, whose eps of 1e-5 the authors have; that of timm's blocks is 1e-6.
    return nn.ModuleList(
        Block(dim, heads, 4.0, qkv_bias=False, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates
    )


def through(layers: nn.ModuleList, tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens through blocks, their positions added before each."""
    for block in layers:
        tokens = block(tokens + positions)
    return tokens


PUBLISHED = {
    "tokens.first.": "encoder.first_conv.",
    "tokens.own.bias": "encoder.second_conv.0.bias",
    "tokens.second.0.": "encoder.second_conv.1.",
    "tokens.second.2.": "encoder.second_conv.3.",
    "position.": "pos_embed.",
    "blocks.": "blocks.blocks.",
}
"""How names begin here, and in the files of Point-MAE and Point-BERT."""


def _theirs(name: str) -> str:
    return next((name.replace(ours, theirs, 1) for ours, theirs in PUBLISHED.items() if name.startswith(ours)), name)


class PointTransformer(nn.Module):
    """The encoder of Point-MAE: patches of a cloud as tokens. Its features are mean and maximum of the tokens.

    Args:
        dim: width of the tokens; paper 384. depth: blocks; paper 12. heads: of each; paper 6.
        groups: patches of a cloud; paper 64 (1,024 points). group_size: points of a patch; paper 32.
        drop_path: stochastic depth of the last block; paper 0.1.
        checkpoint: weights of Point-MAE or Point-BERT, or of a run: see `manyviews.backbones.weights`.

    Attributes:
        width: 2 dim.
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        groups: int = 64,
        group_size: int = 32,
        drop_path: float = 0.1,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.groups, self.group_size, self.drop_path = dim, heads, groups, group_size, drop_path
        self.tokens, self.position = MiniPointNet(dim), position_mlp(dim)
        self.blocks, self.norm = blocks(dim, depth, heads, drop_path), nn.LayerNorm(dim)
        self.width = 2 * dim
        self.apply(_started)
        load_weights(self, checkpoint)

    @property
    def published_names(self) -> set[str]:
        """By which a file is known: ours, and those of Point-MAE."""
        return {*self.state_dict(), *map(_theirs, self.state_dict())}

    def converted(self, state: State, about: Mapping[str, Any]) -> tuple[State, set[str]]:
        """Own state for Point-MAE's; see `load_weights`."""
        if "encoder.first_conv.0.weight" not in state:
            return state, set()
        # Their MLPs are convolutions, and the first of the second kind sees the maximum over the patch beside each
        # point's own features, in this order.
        plain = {name: value[..., 0] if value.ndim == 3 else value for name, value in state.items()}
        both = plain.pop("encoder.second_conv.0.weight").chunk(2, 1)
        plain |= dict(zip(("tokens.patch.weight", "tokens.own.weight"), both, strict=True))
        found = {name: plain.pop(_theirs(name)) for name in self.state_dict() if _theirs(name) in plain}
        return found | plain, set()

    def group(self, points: Tensor) -> Patches:
        """Points (B, N, 3) to patches."""
        return group(points, self.groups, self.group_size)

    def encode(self, tokens: Tensor, centres: Tensor) -> Tensor:
        """(B, n, dim): some tokens with the centres of their patches (B, n, 3), through the transformer."""
        return self.through(tokens, self.position(centres))

    def through(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, n, dim) with positions of the same shape."""
        encoded: Tensor = self.norm(through(self.blocks, tokens, positions))
        return encoded

    def forward(self, points: Tensor) -> Encoding:
        """(B, N, 3) to an Encoding with one token a patch."""
        patches = self.group(points)
        encoded = self.encode(self.tokens(patches.relative), patches.centres)
        return Encoding(pooled(encoded), encoded)


def pooled(tokens: Tensor) -> Tensor:
    """(B, 2 dim): mean and maximum of tokens (B, n, dim)."""
    return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


class PointDecoder(nn.Module):
    """From visible tokens back to the points of masked patches, whose centres are given.

    Args:
        dim, heads, group_size, drop_path: of the encoder. depth: blocks; paper 4.
    """

    def __init__(self, dim: int, heads: int, group_size: int, depth: int = 4, drop_path: float = 0.1) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.position, self.norm = position_mlp(dim), nn.LayerNorm(dim)
        self.blocks = blocks(dim, depth, heads, drop_path).apply(_started_evenly)
        self.head = nn.Linear(dim, 3 * group_size)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, centres: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The points and the features behind them.

        Args:
            visible: (B, n, dim) encoded tokens of the patches that are not masked, in their order.
            centres: (B, G, 3) of all. mask: (B, G) bool, True where masked, the same number in each row.

        Returns:
            (B, m, K, 3) relative coordinates of the masked patches in their order, and (B, G, dim) features of all
            patches in their places, before the last norm.
        """
        tokens = torch.where(mask[..., None], self.mask_token.to(visible.dtype), visible.new_zeros(()))
        tokens = tokens.masked_scatter(~mask[..., None], visible)
        features = through(self.blocks, tokens, self.position(centres))
        masked = features[mask].view(len(mask), -1, features.shape[2])
        return self.head(self.norm(masked)).unflatten(2, (-1, 3)), features


def _started(module: nn.Module) -> None:
    """The encoder's start: normal weights of 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _started_evenly(module: nn.Module) -> None:
    """The start of the decoder's transformer: Glorot's."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ShapeStatistics(nn.Module):
    """What can be measured without learning: the baseline that a point encoder has to beat.

    Sorted extents, a histogram of the distances of pairs of points (D2; Osada et al., 2002), and one of heights.

    Args:
        bins: of each histogram. up: the vertical axis. pairs: of points that are looked at.
        parts: which of `extents`, `distances`, `heights`.
    """

    def __init__(
        self,
        bins: int = 32,
        up: int = 2,
        pairs: int = 4096,
        parts: Sequence[Literal["extents", "distances", "heights"]] = ("extents", "distances", "heights"),
    ) -> None:
        super().__init__()
        self.bins, self.up, self.pairs, self.parts = bins, up, pairs, tuple(parts)
        self.width = sum(3 if part == "extents" else bins for part in parts)

    def forward(self, points: Tensor) -> Encoding:
        """(B, N, 3) to (B, width): 3 extents and the histograms' bins."""
        generator = torch.Generator().manual_seed(0)
        i, j = torch.randint(points.shape[1], (2, self.pairs), generator=generator).to(points.device)
        distance = (points[:, i] - points[:, j]).norm(dim=2)
        most, least = (way.nan_to_num(nan=-torch.inf).amax(1) for way in (points, -points))
        height = points[..., self.up]
        found = {
            "extents": (most + least).sort(1).values,
            "distances": self._histogram(distance, 0.0, 2.0),
            "heights": self._histogram(height, -1.0, 1.0),
        }
        return Encoding(torch.cat([found[part] for part in self.parts], 1))

    def _histogram(self, values: Tensor, low: float, high: float) -> Tensor:
        """(B, bins) shares of the values that are numbers."""
        place = ((values - low) / (high - low) * self.bins).clamp(0, self.bins - 1).nan_to_num(nan=self.bins).long()
        counts = torch.zeros(len(values), self.bins + 1, device=values.device)
        counts.scatter_add_(1, place, torch.ones_like(values))
        return counts[:, :-1] / counts[:, :-1].sum(1, keepdim=True).clamp(min=1)
