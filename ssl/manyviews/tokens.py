"""Similarities of sets of tokens: late interaction, means, optimal transport. All take masks and leave padding out.

Token tensors are (n, T, d), masks (n, T) bool with True for valid tokens. Nothing of size n x m x T x T is ever held:
columns go in chunks, which the backward forms again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST_CHUNK = 2**24
"""Entries of the largest intermediate tensor."""


def late_interaction(a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
    """(n, m): s(i, j) = mean over the valid tokens k of a_i of max over the valid tokens r of b_j of a_ik . b_jr.

    Not symmetric: the other direction is `late_interaction(b, a, ...)`. A pair with an empty side scores 0.
    """

    def block(b: Tensor, mask_b: Tensor) -> Tensor:
        s = torch.einsum("ikd,jrd->ijkr", a, b).masked_fill(~mask_b[None, :, None], -math.inf)
        best = s.amax(3)
        best = torch.where(mask_a[:, None] & mask_b.any(1)[None, :, None], best, 0)
        return best.sum(2) / mask_a.sum(1).clamp(min=1)[:, None]

    return _by_columns(block, a, b, mask_b)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """(n, d): the mean of the valid tokens; 0 where there are none."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]


def transport(
    cost: Tensor, mask_a: Tensor, mask_b: Tensor, epsilon: float, tolerance: float = 1e-4, most: int = 1000
) -> Tensor:
    """(..., T, R): the entropic optimal transport plan between even weights on the valid rows and columns.

    Sinkhorn in the log domain until no column's mass is off by more than `tolerance` of it (a fixed few iterations
    are not the optimum where the plan is near a permutation).

    Args:
        cost: (..., T, R). mask_a: (..., T). mask_b: (..., R). epsilon: > 0, of the entropy.
        tolerance: on the column sums, relative. most: iterations at the most.
    """
    log_a = _even(mask_a)[..., :, None].to(cost.dtype)
    log_b = _even(mask_b)[..., None, :].to(cost.dtype)
    valid = mask_a[..., :, None] & mask_b[..., None, :]
    log_k = (-cost / epsilon).masked_fill(~valid, -math.inf)
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    going = torch.ones_like(f[..., :1, :], dtype=torch.bool)  # each plan on its own: no result depends on its company
    for _ in range(most):
        f = torch.where(going, _finite(log_a - (log_k + g).logsumexp(-1, keepdim=True)), f)
        columns = (log_k + f).logsumexp(-2, keepdim=True)
        off = torch.where(torch.isfinite(log_b), (columns + g - log_b).exp() - 1, 0)
        g = torch.where(going, _finite(log_b - columns), g)
        going = going & (off.detach().abs().amax(-1, keepdim=True) >= tolerance)
        if not bool(going.any()):
            break
    return (log_k + f + g).exp()


def transported(
    a: Tensor,
    b: Tensor,
    mask_a: Tensor,
    mask_b: Tensor,
    epsilon: float,
    detach: bool = True,
    tolerance: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """(n, m) each: minus the transport cost of the tokens of a_i to those of b_j, and the multi-token similarity.

    The latter: tokens of a_i are merged by the plan into one for each token of b_j, and the cosines of those are
    averaged.

    Args:
        a: (n, T, d) and b: (m, R, d), unit tokens. epsilon: of the entropy.
        detach: no gradient through the plan: exact for the cost with its entropy, approximate otherwise.
        tolerance: of the plan, see `transport`.
    """

    def block(b: Tensor, mask_b: Tensor) -> Tensor:
        s = torch.einsum("ikd,jrd->ijkr", a, b)
        one, other = mask_a[:, None].expand(-1, len(b), -1), mask_b[None].expand(len(a), -1, -1)
        plan = transport((1 - s).detach() if detach else 1 - s, one, other, epsilon, tolerance)
        cost = (plan * (1 - s)).sum((2, 3))
        merged = torch.nn.functional.normalize(torch.einsum("ijkr,ikd->ijrd", plan, a), dim=-1)
        cosines = torch.einsum("ijrd,jrd->ijr", merged, b) * other
        return torch.stack([-cost, cosines.sum(2) / mask_b.sum(1).clamp(min=1)])

    both = _by_columns(block, a, b, mask_b)
    return both[0], both[1]


def _even(mask: Tensor) -> Tensor:
    """Log of even weights on what is valid, -inf elsewhere."""
    share = -mask.sum(-1, keepdim=True).clamp(min=1).to(torch.float64).log()
    return torch.where(mask, share, -math.inf)


def _finite(potential: Tensor) -> Tensor:
    # Padding has log weight -inf against log mass -inf; any finite potential leaves its mass at 0.
    return torch.where(torch.isfinite(potential), potential, 0)


def _by_columns(block: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, mask_b: Tensor) -> Tensor:
    """`block` over chunks of b along its first dimension, results side by side; formed again in the backward."""
    size = max(1, LARGEST_CHUNK // max(1, a.shape[0] * a.shape[1] * b.shape[1]))
    if size >= len(b):
        return block(b, mask_b)
    parts = zip(b.split(size), mask_b.split(size), strict=True)
    return torch.cat([checkpoint(block, *part, use_reentrant=False) for part in parts], -1)
