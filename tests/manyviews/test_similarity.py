"""The streaming log-sum-exps against dense ones: masks, blocks, bounds, ranks, memory."""

import math

import pytest
import torch

from manyviews.distributed import LOCAL, simulate
from manyviews.similarity import logsumexp, logsumexp_self

double = {"dtype": torch.float64}


def dense(a, b, ids_a, ids_b):
    return (a @ b.T).masked_fill(ids_a[:, None] == ids_b[None], -math.inf).logsumexp(1)


def setup(n=37, m=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, 6, generator=generator, **double), torch.randn(m, 6, generator=generator, **double)
    ids_a, ids_b = torch.randint(0, 9, (n,), generator=generator), torch.randint(0, 9, (m,), generator=generator)
    return a, b, ids_a, ids_b, torch.randn(n, generator=generator, **double)


@pytest.mark.parametrize("block", [5, 16, 64])
@pytest.mark.parametrize("bound", [None, 35.0])
def test_symmetric_equals_dense(block, bound):
    z, _, ids, _, weight = setup()
    z = z.requires_grad_()
    ours = logsumexp_self(z, ids, LOCAL(37), bound=bound, block=block)
    reference = dense(z, z, ids, ids)
    torch.testing.assert_close(ours, reference, atol=1e-12, rtol=0)
    grads = [torch.autograd.grad((x * weight).sum(), z)[0] for x in (ours, reference)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [5, 64])
@pytest.mark.parametrize("bound", [None, 35.0])
def test_rectangular_equals_dense(block, bound):
    a, b, ids_a, ids_b, weight = setup(37, 74)
    leaves = [a.requires_grad_(), b.requires_grad_()]
    ours = logsumexp(a, b, ids_a, ids_b, LOCAL(37), bound=bound, block=block)
    reference = dense(a, b, ids_a, ids_b)
    torch.testing.assert_close(ours, reference, atol=1e-12, rtol=0)
    for x, y in zip(*(torch.autograd.grad((z * weight).sum(), leaves) for z in (ours, reference)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("sizes", [[20, 17], [5, 30, 2], [9, 9, 10, 9]])
@pytest.mark.parametrize("bound", [None, 35.0])
def test_ranks(sizes, bound):
    a, b, ids_a, ids_b, weight = setup()
    leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]

    def loss(x, y, ids_x, ids_y, w, rows):
        both = logsumexp(x, y, ids_x, ids_y, rows, bound, 8) + logsumexp_self(x, ids_x, rows, bound, 8)
        return rows.mean(both * w)

    whole = loss(*leaves, ids_a, ids_b, weight, LOCAL(37))
    expected = torch.autograd.grad(whole, leaves)

    def rank(gather):
        x, y, ids_x, ids_y, w = (t.split(sizes)[gather.rank] for t in (a, b, ids_a, ids_b, weight))
        mine = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        value = loss(*mine, ids_x, ids_y, w, gather(len(x)))
        return value.item(), torch.autograd.grad(value, mine)

    results = simulate(len(sizes), rank)
    assert all(value == pytest.approx(whole.item(), abs=1e-12) for value, _ in results)
    for k in range(2):
        joined = torch.cat([grads[k] for _, grads in results]) / len(sizes)
        torch.testing.assert_close(joined, expected[k], atol=1e-12, rtol=0)


def test_gradcheck_of_both():
    a, b, ids_a, ids_b, _ = setup(7, 7)
    leaves = a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: logsumexp(x, y, ids_a, ids_b, LOCAL(7), block=3), leaves)
    assert torch.autograd.gradcheck(lambda x: logsumexp_self(x, ids_a, LOCAL(7), block=3), leaves[:1])


def test_empty_rows_are_minus_infinity_with_zero_gradient():
    z = torch.randn(4, 3, **double).requires_grad_()
    ids = torch.zeros(4, dtype=torch.int64)
    for out in (logsumexp_self(z, ids, LOCAL(4)), logsumexp(z, z, ids, ids, LOCAL(4))):
        assert (out == -math.inf).all()
        (grad,) = torch.autograd.grad(out.exp().sum(), z)
        assert (grad == 0).all()


def test_large_logits_need_no_bound():
    z = (torch.randn(32, 8) * 100).requires_grad_()
    out = logsumexp_self(z, torch.arange(32), LOCAL(32))
    torch.testing.assert_close(out, dense(z, z, torch.arange(32), torch.arange(32)))
    assert torch.isfinite(torch.autograd.grad(out.sum(), z)[0]).all()


def test_no_tensor_of_n_by_n_is_ever_made():
    """The largest tensor that autograd saves or an operator returns is a block or the input, not the matrix."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    n, block = 2048, 64
    z = torch.nn.functional.normalize(torch.randn(n, 16), dim=1).requires_grad_()
    with Watch():
        logsumexp_self(z, torch.arange(n), LOCAL(n), bound=1.0, block=block).sum().backward()
    assert largest <= n * 16 < n * n // 32


def test_uneven_gather_and_its_gradient():
    x = torch.arange(12.0, **double).view(6, 2)

    def rank(gather):
        mine = x.split([4, 2])[gather.rank].clone().requires_grad_()
        rows = gather(len(mine))
        everyone = rows.gather_with_gradient(mine)
        loss = (everyone**2).sum() * (gather.rank + 1)
        return everyone.detach(), rows.offset, rows.total, torch.autograd.grad(loss, mine)[0]

    results = simulate(2, rank)
    for everyone, _, total, _ in results:
        torch.testing.assert_close(everyone, x)
        assert total == 6
    assert [offset for _, offset, _, _ in results] == [0, 4]
    torch.testing.assert_close(torch.cat([grad for *_, grad in results]), 2 * x * 3)  # summed over both ranks


def test_a_rank_that_fails_ends_the_simulation_with_its_error():
    def rank(gather):
        if gather.rank == 1:
            raise RuntimeError("rank 1 broke")
        return gather(3)

    with pytest.raises(RuntimeError, match="rank 1 broke"):
        simulate(2, rank)
