"""The numerical core: log-sum-exps over the rows of a similarity matrix that is never held.

Every objective here that compares all rows with all rows stands on these functions. They walk over blocks of the
matrix, keep N numbers instead of N x N, and form the blocks again in the backward. Sums are float32 or better whatever
autocast says; half inputs are cast up first.

One kind of mask covers all cases: every row has an int64 id, and a column whose id equals the row's is left out.
With the image's batch index as id that removes an image's own views (the negatives of SimCLR, DCL, DHEL); with a
class or duplicate id it also removes known false negatives.

Across ranks only features, ids and one number a row are gathered. A rank then forms the exact gradient of its own
features itself, since p_ij + p_ji needs nothing of the other ranks but their rows' log-sum-exps and incoming
gradients: no gradient of features is ever communicated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import LOCAL, Rows

# exp(-2 * bound) must stay a normal float32: with |s| <= bound a constant shift then replaces the running maximum.
LARGEST_SHIFT = 40.0


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """Rows of `x` scaled to unit length; cast up before, since bf16 cannot hold a cosine near 1."""
    return F.normalize(full_precision(x), dim=-1)


def own_views(views: Sequence[Tensor], temperature: float) -> Tensor:
    """(V, V, n): u_l,i . u_m,i / t, the similarities among the views of each image."""
    stacked = torch.stack(list(views))
    return torch.einsum("lnd,mnd->lmn", stacked, stacked) / temperature


def log_negatives(
    views: Sequence[Tensor], temperature: float, rows: Rows, group: Tensor | None = None, block: int | None = None
) -> Tensor:
    """(V, n): log sum of exp(u_l,i . u_m,j / t) over every given view m of every *other* image j of all ranks.

    Args:
        views: V tensors (n, D) of unit rows.
        temperature: t > 0.
        rows: the global batch, from the objective's gather.
        group: (n,) int64; images of equal group >= 0 are not each other's negatives. -1: unknown, no such twin.
        block: rows and columns of a block; default 512 on the CPU, 4096 on a GPU.

    A row without any negative gives -inf, with zero gradient.
    """
    ids = image_ids(rows, group, views[0].device).repeat(len(views))
    z = torch.cat(list(views)) * temperature**-0.5
    return logsumexp_self(z, ids, rows, bound=1 / temperature, block=block).view(len(views), -1)


def log_sum(x: Tensor, dim: int) -> Tensor:
    """`x.logsumexp(dim)`, with a gradient of 0, not NaN, where nothing is there (all of a row is -inf)."""
    nothing = (x == -math.inf).all(dim, keepdim=True)
    return x.masked_fill(nothing, 0).logsumexp(dim).masked_fill(nothing.squeeze(dim), -math.inf)


def image_ids(rows: Rows, group: Tensor | None, device: torch.device) -> Tensor:
    """(n,) int64 ids for masking: the group where it is known, else a number no other image of the batch has."""
    index = rows.index(device)
    return index if group is None else torch.where(group >= 0, group, -1 - index)


def logsumexp_self(z: Tensor, ids: Tensor, rows: Rows, bound: float | None = None, block: int | None = None) -> Tensor:
    """(m,): log sum_j exp(z_i . z_j) over the rows j of all ranks with ids_j != ids_i.

    Args:
        z: (m, D) local rows, m a multiple of `rows.n`; any temperature is already in it (as its square root).
        ids: (m,) int64.
        bound: a number with |z_i . z_j| <= bound for all rows (1/t for unit rows). Saves the running maximum.
        block: rows and columns of a block.

    On one process only the upper triangle of blocks is formed: 4 m^2 D flops forward and backward, against 6 for
    the dense matrix.
    """
    return _SelfLogSumExp.apply(full_precision(z), ids, rows, _shift(bound), block or _block(z))  # type: ignore[no-any-return]


def logsumexp(
    a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, rows: Rows, bound: float | None = None, block: int | None = None
) -> Tensor:
    """(m,): log sum_j exp(a_i . b_j) over the columns j of all ranks with ids_b[j] != ids_a[i].

    Args:
        a: (m, D) local rows. b: (k, D) local columns; m and k are multiples of `rows.n`.
        ids_a: (m,) int64. ids_b: (k,) int64.
        bound, block: as in `logsumexp_self`.

    The gradient of `b` counts the rows of all ranks.
    """
    a, b = full_precision(a), full_precision(b)
    return _LogSumExp.apply(a, b, ids_a, ids_b, rows, _shift(bound), block or _block(a))  # type: ignore[no-any-return]


def logsumexp_both(
    a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, rows: Rows, bound: float | None = None, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The log-sum-exps of the rows and of the columns of one similarity matrix, in one walk over it.

    Row i: log sum_j exp(a_i . b_j) over the b of all ranks with ids_b[j] != ids_a[i]; column j: the same sum over the
    a of all ranks.

    Args:
        a: (m, D) and b: (k, D), local; m and k are multiples of `rows.n`.
        ids_a, ids_b, bound, block: as in `logsumexp`.

    Returns:
        (m,) and (k,).
    """
    a, b = full_precision(a), full_precision(b)
    both: tuple[Tensor, Tensor] = _LogSumExpBoth.apply(a, b, ids_a, ids_b, rows, _shift(bound), block or _block(a))
    return both


def softplus_sums(a: Tensor, b: Tensor, bias: Tensor, rows: Rows, block: int | None = None) -> Tensor:
    """(m,): sum_j softplus(a_i . b_j + bias) over the columns j of all ranks.

    The columns travel round the ranks (a ring): a rank holds one other rank's at a time, in the backward with the
    gradient they have gathered so far.

    Args:
        a: (m, D) local rows. b: (k, D) local columns; k is a multiple of `rows.n`. bias: a scalar.
    """
    return _SoftplusSums.apply(full_precision(a), full_precision(b), bias, rows, block or _block(a))  # type: ignore[no-any-return]


def logsumexp_bank(a: Tensor, bank: Tensor, bound: float | None = None, block: int | None = None) -> Tensor:
    """(m,): log sum_j exp(a_i . bank_j) over constant columns that every rank holds alike (a queue, a memory).

    Args:
        a: (m, D) local rows; any temperature is already in them.
        bank: (K, D).
        bound, block: as in `logsumexp_self`.
    """
    ids = torch.zeros(len(a) + len(bank), dtype=torch.int64, device=a.device)
    ids[: len(a)] = 1
    bank = bank.detach().clone()  # a queue is written to before the backward
    return logsumexp(a, bank, ids[: len(a)], ids[len(a) :], LOCAL(1), bound, block)


@torch.no_grad()
def hardest(a: Tensor, bank: Tensor, k: int, block: int = 8192) -> Tensor:
    """(m, k) indices of the k columns of `bank` (K, D) most similar to each row of `a` (m, D), best first."""
    a, bank = full_precision(a), full_precision(bank)
    with torch.autocast(a.device.type, enabled=False):
        best = a.new_full((len(a), 0), 0.0)
        places = torch.zeros(len(a), 0, dtype=torch.int64, device=a.device)
        for start in range(0, len(bank), block):
            s = a @ bank[start : start + block].T
            there = torch.arange(start, start + s.shape[1], device=a.device).expand_as(s)
            best, chosen = torch.cat([best, s], 1).topk(min(k, best.shape[1] + s.shape[1]), dim=1)
            places = torch.cat([places, there], 1).gather(1, chosen)
    return places


def _shift(bound: float | None) -> float | None:
    return bound if bound is not None and bound <= LARGEST_SHIFT else None


def _block(z: Tensor) -> int:
    return 512 if z.device.type == "cpu" else 4096


class _Matrix:
    """The blocks of a similarity matrix, masked where ids are equal."""

    def __init__(self, a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, block: int) -> None:
        self.a, self.b, self.ids_a, self.ids_b, self.block = a, b, ids_a, ids_b, block
        # On the CPU the id ranges of the blocks tell which ones need no mask at all (with image ids: nearly all).
        self.ranges_a, self.ranges_b = (self._ranges(ids) for ids in (ids_a, ids_b))

    def _ranges(self, ids: Tensor) -> list[tuple[int, int]] | None:
        if ids.device.type != "cpu":
            return None
        return [(int(part.min()), int(part.max())) for part in ids.split(self.block)]

    def row_slices(self) -> Iterator[slice]:
        return (slice(i, i + self.block) for i in range(0, len(self.a), self.block))

    def column_slices(self, start: int = 0) -> Iterator[slice]:
        return (slice(j, j + self.block) for j in range(start, len(self.b), self.block))

    def __call__(self, i: slice, j: slice) -> Tensor:
        s = self.a[i] @ self.b[j].T
        if self._may_meet(i, j):
            s.masked_fill_(self.ids_a[i, None] == self.ids_b[None, j], -math.inf)
        return s

    def _may_meet(self, i: slice, j: slice) -> bool:
        if self.ranges_a is None or self.ranges_b is None:
            return True
        (low_a, high_a), (low_b, high_b) = self.ranges_a[i.start // self.block], self.ranges_b[j.start // self.block]
        return bool(low_a <= high_b and low_b <= high_a)


class _Sums:
    """Running log-sum-exps: plain sums under a constant shift where the entries are bounded, else logaddexp."""

    def __init__(self, n: int, like: Tensor, shift: float | None) -> None:
        self.shift = shift
        self.value = like.new_full((n,), 0.0 if shift is not None else -math.inf)

    def prepare(self, s: Tensor) -> Tensor:
        return s if self.shift is None else s.sub_(self.shift).exp_()

    def add(self, i: slice, prepared: Tensor, dim: int) -> None:
        if self.shift is None:
            self.value[i] = torch.logaddexp(self.value[i], torch.logsumexp(prepared, dim))
        else:
            self.value[i] += prepared.sum(dim)

    def result(self) -> Tensor:
        return self.value if self.shift is None else self.value.log_().add_(self.shift)


def _weights(s: Tensor, i: slice, lse_i: Tensor, g_i: Tensor, j: slice, lse_j: Tensor, g_j: Tensor) -> Tensor:
    """d loss / d s_ij where s_ij stands in the sums of row i and of row j: g_i p_ij + g_j p_ji."""
    return (s - lse_i[i, None]).exp_().mul_(g_i[i, None]).add_(s.sub_(lse_j[None, j]).exp_().mul_(g_j[None, j]))


def _finite(lse: Tensor) -> Tensor:
    # An empty sum is -inf and its entries too; +inf instead makes their weights exp(-inf) = 0 rather than NaN.
    return torch.where(lse == -math.inf, math.inf, lse)


class _SelfLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, ids: Tensor, rows: Rows, shift: float | None, block: int) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            sums = _Sums(len(z), z, shift)
            if rows.world == 1:
                z_all, ids_all, matrix = z, ids, _Matrix(z, z, ids, ids, block)
                for i in matrix.row_slices():
                    for j in matrix.column_slices(start=i.start):
                        e = sums.prepare(matrix(i, j))
                        sums.add(i, e, dim=1)
                        if j != i:
                            sums.add(j, e, dim=0)
            else:
                z_all, ids_all = rows.gather(z), rows.gather(ids)
                matrix = _Matrix(z, z_all, ids, ids_all, block)
                for i in matrix.row_slices():
                    for j in matrix.column_slices():
                        sums.add(i, sums.prepare(matrix(i, j)), dim=1)
            lse = sums.result()
        ctx.save_for_backward(z, z_all, ids, ids_all, lse)
        ctx.rows, ctx.shift, ctx.block = rows, shift, block
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, z_all, ids, ids_all, lse = ctx.saved_tensors
        rows: Rows = ctx.rows
        with torch.autocast(z.device.type, enabled=False):
            g, lse = grads[0].contiguous(), _finite(lse)
            g_all, lse_all = (g, lse) if rows.world == 1 else (rows.gather(g), rows.gather(lse))
            matrix = _Matrix(z, z_all, ids, ids_all, ctx.block)
            grad = torch.zeros_like(z)
            for i, j, p in _both_weights(ctx, matrix, lse, g, lse_all, g_all, triangle=rows.world == 1):
                grad[i].addmm_(p, z_all[j])
                if rows.world == 1 and j != i:
                    grad[j].addmm_(p.T, z[i])
        return grad, None, None, None, None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, rows: Rows, shift: float | None, block: int
    ) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            b_all, ids_b_all = rows.gather(b), rows.gather(ids_b)
            matrix = _Matrix(a, b_all, ids_a, ids_b_all, block)
            sums = _Sums(len(a), a, shift)
            for i in matrix.row_slices():
                for j in matrix.column_slices():
                    sums.add(i, sums.prepare(matrix(i, j)), dim=1)
            lse = sums.result()
        ctx.save_for_backward(a, b, b_all, ids_a, ids_b, ids_b_all, lse)
        ctx.rows, ctx.block = rows, block
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, b_all, ids_a, ids_b, ids_b_all, lse = ctx.saved_tensors
        rows: Rows = ctx.rows
        with torch.autocast(a.device.type, enabled=False):
            g, lse = grads[0].contiguous(), _finite(lse)
            grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
            matrix = _Matrix(a, b_all, ids_a, ids_b_all, ctx.block)
            for i in matrix.row_slices():
                for j in matrix.column_slices():
                    p = matrix(i, j).sub_(lse[i, None]).exp_().mul_(g[i, None])
                    grad_a[i].addmm_(p, b_all[j])
                    if rows.world == 1 and ctx.needs_input_grad[1]:
                        grad_b[j].addmm_(p.T, a[i])
            if rows.world > 1 and ctx.needs_input_grad[1]:  # the local columns against the rows of every rank
                g_all, lse_all, a_all = rows.gather(g), rows.gather(lse), rows.gather(a)
                matrix = _Matrix(a_all, b, rows.gather(ids_a), ids_b, ctx.block)
                for i in matrix.row_slices():
                    for j in matrix.column_slices():
                        p = matrix(i, j).sub_(lse_all[i, None]).exp_().mul_(g_all[i, None])
                        grad_b[j].addmm_(p.T, a_all[i])
        return grad_a, grad_b, None, None, None, None, None


class _LogSumExpBoth(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, rows: Rows, shift: float | None, block: int
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(a.device.type, enabled=False):
            sums_a, sums_b = _Sums(len(a), a, shift), _Sums(len(b), b, shift)
            if rows.world == 1:
                a_all, b_all, ids_a_all, ids_b_all = a, b, ids_a, ids_b
                matrix = _Matrix(a, b, ids_a, ids_b, block)
                for i in matrix.row_slices():
                    for j in matrix.column_slices():
                        e = sums_a.prepare(matrix(i, j))
                        sums_a.add(i, e, dim=1)
                        sums_b.add(j, e, dim=0)
            else:  # this rank's strip of rows and its strip of columns
                a_all, b_all, ids_a_all, ids_b_all = (rows.gather(x) for x in (a, b, ids_a, ids_b))
                for sums, x, y, ids_x, ids_y in (
                    (sums_a, a, b_all, ids_a, ids_b_all),
                    (sums_b, b, a_all, ids_b, ids_a_all),
                ):
                    matrix = _Matrix(x, y, ids_x, ids_y, block)
                    for i in matrix.row_slices():
                        for j in matrix.column_slices():
                            sums.add(i, sums.prepare(matrix(i, j)), dim=1)
            lse_a, lse_b = sums_a.result(), sums_b.result()
        ctx.save_for_backward(a, b, a_all, b_all, ids_a, ids_b, ids_a_all, ids_b_all, lse_a, lse_b)
        ctx.rows, ctx.shift, ctx.block = rows, shift, block
        return lse_a, lse_b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, a_all, b_all, ids_a, ids_b, ids_a_all, ids_b_all, *lses = ctx.saved_tensors
        rows: Rows = ctx.rows
        with torch.autocast(a.device.type, enabled=False):
            (g_a, g_b), (lse_a, lse_b) = (grad.contiguous() for grad in grads), map(_finite, lses)
            grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
            if rows.world == 1:
                for i, j, p in _both_weights(ctx, _Matrix(a, b, ids_a, ids_b, ctx.block), lse_a, g_a, lse_b, g_b):
                    grad_a[i].addmm_(p, b[j])
                    grad_b[j].addmm_(p.T, a[i])
            else:
                g_a_all, g_b_all, lse_a_all, lse_b_all = (rows.gather(x) for x in (g_a, g_b, lse_a, lse_b))
                strip = _Matrix(a, b_all, ids_a, ids_b_all, ctx.block)
                for i, j, p in _both_weights(ctx, strip, lse_a, g_a, lse_b_all, g_b_all):
                    grad_a[i].addmm_(p, b_all[j])
                strip = _Matrix(b, a_all, ids_b, ids_a_all, ctx.block)
                for i, j, p in _both_weights(ctx, strip, lse_b, g_b, lse_a_all, g_a_all):
                    grad_b[i].addmm_(p, a_all[j])
        return grad_a, grad_b, None, None, None, None, None


def _both_weights(
    ctx: Any, matrix: _Matrix, lse_i: Tensor, g_i: Tensor, lse_j: Tensor, g_j: Tensor, triangle: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row and column slices, and d loss / d s of that block, where s stands in a row's sum and in a column's."""
    if ctx.shift is not None:  # one exponential serves row and column
        u_i, u_j = g_i * (ctx.shift - lse_i).exp(), g_j * (ctx.shift - lse_j).exp()
    for i in matrix.row_slices():
        for j in matrix.column_slices(start=i.start if triangle else 0):
            s = matrix(i, j)
            if ctx.shift is None:
                yield i, j, _weights(s, i, lse_i, g_i, j, lse_j, g_j)
            else:
                yield i, j, s.sub_(ctx.shift).exp_().mul_(u_i[i, None] + u_j[None, j])


class _SoftplusSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor, rows: Rows, block: int) -> Tensor:
        sums = a.new_zeros(len(a))
        with torch.autocast(a.device.type, enabled=False):
            for (columns,) in rows.ring([b]):
                for i, j in _blocks(a, columns, block):
                    sums[i] += F.softplus(torch.addmm(bias, a[i], columns[j].T)).sum(1)
        ctx.save_for_backward(a, b, bias)
        ctx.rows, ctx.block = rows, block
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, bias = ctx.saved_tensors
        g = grads[0].contiguous()
        grad_a, grad_bias = torch.zeros_like(a), torch.zeros_like(bias)
        travelling = [b, torch.zeros_like(b)]
        with torch.autocast(a.device.type, enabled=False):
            for columns, grad_columns in ctx.rows.ring(travelling, home=True):
                for i, j in _blocks(a, columns, ctx.block):
                    p = torch.addmm(bias, a[i], columns[j].T).sigmoid_().mul_(g[i, None])
                    grad_a[i].addmm_(p, columns[j])
                    grad_columns[j].addmm_(p.T, a[i])
                    grad_bias += p.sum()
        return grad_a, travelling[1], grad_bias, None, None


def _blocks(a: Tensor, b: Tensor, block: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            yield slice(i, i + block), slice(j, j + block)
