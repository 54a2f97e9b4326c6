"""What stands between a backbone and an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyviews.similarity import unit


def projector(
    width: int,
    hidden: int,
    out: int,
    layers: int = 2,
    norm: bool = True,
    last: Literal["linear", "batch", "standard", "layer"] = "linear",
    last_bias: bool = True,
) -> nn.Sequential:
    """An MLP head: (Linear - BatchNorm - ReLU) x (layers - 1), Linear, and on demand a final norm.

    Args:
        width: of the features that come in.
        hidden: width of the hidden layers. out: width of the embedding.
        layers: number of linear layers, 1 or more.
        norm: BatchNorm in the hidden layers; MoCo v2 has none.
        last: what follows the last linear layer, which has a bias only if nothing does: `batch`: BatchNorm (the code
            of SimCLR and MV-DHEL); `standard`: BatchNorm without scale and shift (SimSiam, MoCo v3); `layer`:
            LayerNorm.
        last_bias: False: no bias either where no norm follows (BYOL, Barlow Twins, VICReg).
    """
    if layers < 1:
        raise ValueError(f"a projector has at least one layer, got {layers}")
    ends: dict[str, list[nn.Module]] = {
        "linear": [],
        "batch": [nn.BatchNorm1d(out)],
        "standard": [nn.BatchNorm1d(out, affine=False)],
        "layer": [nn.LayerNorm(out)],
    }
    if last not in ends:
        raise ValueError(f"last must be one of {', '.join(ends)}, got {last!r}")
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, hidden, bias=not norm), *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU()]
        width = hidden
    return nn.Sequential(*parts, nn.Linear(width, out, bias=last == "linear" and last_bias), *ends[last])


class Prototypes(nn.Module):
    """Inner products with K prototypes of length 1, or of a learned length that begins at 1.

    Args:
        width: of what is compared with them. count: K. gain: learn their length.
    """

    def __init__(self, width: int, count: int, gain: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # torch's own of a linear layer
        self.gain = nn.Parameter(torch.ones(count, 1)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) to (n, K)."""
        prototypes = unit(self.weight)
        return nn.functional.linear(x, prototypes if self.gain is None else self.gain * prototypes)


class PrototypeHead(nn.Module):
    """The head of DINO: an MLP, length 1, and prototypes.

    Args:
        width: of the features that come in. prototypes: K. hidden: width of the two hidden layers (GELU, no norm).
        bottleneck: of what is compared with the prototypes.
        gain: prototypes have a learned length (the authors' advice for ViT-S); else every logit is a cosine.
    """

    def __init__(
        self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, gain: bool = False
    ) -> None:
        super().__init__()
        layers = [nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.prototypes = Prototypes(bottleneck, prototypes, gain)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) to (n, K)."""
        logits: Tensor = self.prototypes(unit(self.mlp(x)))
        return logits


class MultiHead(nn.Module):
    """Independent heads, their outputs side by side.

    Args:
        heads: C modules.
        split: each head gets its own C-th of the input (a predictor after a multi-head projector), not all of it.
    """

    def __init__(self, heads: Sequence[nn.Module], split: bool = False) -> None:
        super().__init__()
        self.heads, self.split = nn.ModuleList(heads), split

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) to (n, C d)."""
        parts = x.chunk(len(self.heads), 1) if self.split else [x] * len(self.heads)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], 1)


class LogitScale(nn.Module):
    """The learned factor s = exp(t) of cosines (one over the temperature), and on demand a learned bias.

    One float32 number whatever the precision of the rest: near ln 100 the numbers of bfloat16 lie 0.03 apart, and
    small updates would be lost. It takes no weight decay (it has no dimension).

    Args:
        initial: s at the start; CLIP 1 / 0.07, SigLIP 10.
        bounds: of s, kept after every optimiser step by `clamp`; CLIP (1, 100); None: free (SigLIP).
        bias: at the start; None: no bias. SigLIP -10.
        learned: False: s and bias stay as they are.
    """

    def __init__(
        self,
        initial: float = 1 / 0.07,
        bounds: tuple[float, float] | None = (1.0, 100.0),
        bias: float | None = None,
        learned: bool = True,
    ) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"initial must be > 0, got {initial}")
        if bounds is not None and not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"bounds must be 0 < low <= high, got {bounds}")
        self.bounds = bounds
        # Of one element, not scalars, which fully sharded training cannot cut.
        self.log_scale = nn.Parameter(torch.tensor([math.log(initial)]))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([float(bias)]))
        self.requires_grad_(learned)

    def forward(self) -> Tensor:
        """s, a scalar."""
        return self.log_scale.exp()[0]

    @torch.no_grad()
    def clamp(self) -> None:
        """Brings s back into its bounds, outside of the graph."""
        if self.bounds is not None:
            self.log_scale.clamp_(math.log(self.bounds[0]), math.log(self.bounds[1]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in (f"{prefix}log_scale", f"{prefix}bias"):
            if key in state_dict and state_dict[key].ndim == 0:  # in checkpoints of old, and in open_clip's files
                state_dict[key] = state_dict[key][None]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(x: Tensor) -> Tensor:
            y = fn(x)
            return y.float() if y.dtype in (torch.bfloat16, torch.float16) else y

        return super()._apply(kept, recurse)  # type: ignore[no-untyped-call]


class TokenLearner(nn.Module):
    """Fewer visual tokens, each a convex combination of linearly mapped patches (Wukong's reduced-token layer).

    Args:
        dim: D of the tokens. tokens: how many are left. groups: of the grouped linear maps; divides D.
    """

    def __init__(self, dim: int, tokens: int, groups: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Sequential(nn.Conv1d(dim, dim, 1, groups=groups), nn.Conv1d(dim, tokens, 1))
        self.value = nn.Conv1d(dim, dim, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, D) to (n, tokens, D)."""
        weights = self.score(self.norm(x).mT).softmax(2)
        fewer: Tensor = weights @ self.value(x.mT).mT
        return fewer


class LatentPool(nn.Module):
    """One learned query attends to the valid tokens; feed-forward, LayerNorm, linear map (COSMO's pooled latent).

    Args:
        width: of the tokens. out: of the embedding. heads: of the attention.
    """

    def __init__(self, width: int, out: int, heads: int = 8) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        wide = 4 * width
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.last = nn.LayerNorm(width)
        self.out = nn.Linear(width, out, bias=False)

    def no_weight_decay(self) -> list[str]:
        """The query."""
        return ["query"]

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(n, T, width) and (n, T) bool, True for valid, to (n, out)."""
        x = self.norm(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        pooled = query + self.attention(query, x, x, key_padding_mask=~mask, need_weights=False)[0]
        pooled = pooled + self.mlp(pooled)
        result: Tensor = self.out(self.last(pooled[:, 0]))
        return result
