"""CLIP, SigLIP and ALIGN: worked numbers, open_clip's own losses, the ring, the logit scale."""

import math
from functools import partial

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from manyviews import objectives as o
from manyviews.distributed import LOCAL, simulate
from manyviews.heads import LogitScale
from manyviews.optim import groups_of
from manyviews.similarity import logsumexp_both, softplus_sums

double = {"dtype": torch.float64}


def at(*degrees):
    angle = torch.tensor(degrees, **double).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)


F3 = [at(0, 90, 200), at(10, 80, 180)]
NO_SCALE = partial(LogitScale, bounds=None)


@pytest.mark.parametrize("scale, loss", [(1, 0.463637), (10, 2.227857e-4), (1 / 0.07, 6.560681e-6)])
def test_clip_of_the_worked_example(scale, loss):
    assert o.CLIP(NO_SCALE(scale)).double()(F3).item() == pytest.approx(loss, rel=2e-6)
    assert o.CLIP(NO_SCALE(scale)).double()(F3[::-1]).item() == pytest.approx(loss, rel=2e-6)


def test_clip_each_way():
    for views, loss in ((F3, 0.460135), (F3[::-1], 0.467139)):
        first = o.CLIP(NO_SCALE(1.0), directions="first").double()
        assert first(views).item() == pytest.approx(loss, abs=1e-6)


def test_clip_at_known_places():
    perfect = [torch.eye(4, **double)] * 2
    assert o.CLIP(NO_SCALE(1e-12)).double()(F3).item() == pytest.approx(math.log(3))
    for scale, loss in ((1.0, 0.743668), (14.2857, 1.874623e-6)):
        assert o.CLIP(NO_SCALE(scale)).double()(perfect).item() == pytest.approx(loss, rel=1e-4)


def test_the_floor_that_a_duplicate_caption_puts_under_the_loss():
    images = torch.eye(3, **double)
    texts = images[[0, 1, 1]]
    sharp = o.CLIP(NO_SCALE(1e3)).double()
    assert sharp([texts, texts]).item() == pytest.approx(2 / 3 * math.log(2))
    group = torch.tensor([-1, 5, 5])
    assert sharp([texts, texts], group=group).item() == pytest.approx(0, abs=1e-9)
    shared = o.CLIP(NO_SCALE(1e3), positives="group").double()
    assert shared([texts, texts], group=group).item() == pytest.approx(2 / 3 * math.log(2))  # the target's entropy


def test_align_of_the_worked_example():
    assert o.CLIP(NO_SCALE(10.0), smoothing=0.1).double()(F3).item() == pytest.approx(0.884237, abs=1e-6)
    for views in (F3, F3[::-1]):
        objective = o.CLIP(NO_SCALE(10.0), smoothing=0.1, directions="first").double()
        own, s = objective(views).item(), objective.scale() * views[0] @ views[1].T
        assert own == pytest.approx(F.cross_entropy(s, torch.arange(3), label_smoothing=0.1).item(), abs=1e-12)
    gap = math.log(28)  # the best logits lie this far apart, and no further
    best = F.cross_entropy(gap * torch.eye(3, **double), torch.arange(3), label_smoothing=0.1).item()
    assert best == pytest.approx(0.291140, abs=1e-6)


def test_hard_captions_of_the_worked_example():
    images, captions, hard = at(0, 90), at(10, 80), at(25, 60)
    clip = o.CLIP(NO_SCALE(10.0)).double()
    assert clip([images, captions]).item() == pytest.approx(2.999947e-4, rel=1e-6)
    hard = hard[:, None].requires_grad_()
    loss = clip([images, captions], extra=hard)
    assert loss.item() == pytest.approx(0.162766, abs=1e-6)
    one_way = o.CLIP(NO_SCALE(10.0), directions="first").double()([images, captions], extra=hard)
    assert one_way.item() == pytest.approx(0.325232, abs=1e-6)
    for whole, part in zip(torch.autograd.grad(loss, hard), torch.autograd.grad(one_way, hard), strict=True):
        torch.testing.assert_close(whole, part / 2)
    same = o.CLIP(NO_SCALE(10.0), directions="first").double()([images, captions], extra=captions[:, None])
    assert same.item() >= math.log(2)
    away = clip([images, captions], extra=-images[:, None])
    assert away.item() == pytest.approx(2.999947e-4, abs=math.exp(-10))  # what exp(-s) still weighs


def test_one_sided_scores_of_the_worked_example():
    """Brain decoding: only the candidates are normalised, one direction."""
    z, y = torch.tensor([[2.0, 0], [0, 1]], **double), torch.tensor([[3.0, 4], [0, 2]], **double)
    decoding = o.CLIP(NO_SCALE(1.0), directions="first", normalise=False).double()
    loss = decoding([z, y]).item()
    assert loss == pytest.approx(0.430712, abs=2e-6)
    assert decoding([z, 7 * y]).item() == pytest.approx(loss, abs=1e-12)
    assert decoding([z, y], extra=torch.randn(2, 3, 2, **double)).item() > loss


def test_siglip_of_the_worked_example():
    for beta, loss in ((-10.0, 0.861339), (0.0, 1.499196)):
        assert o.SigLIP(LogitScale(10.0, None, beta)).double()(F3).item() == pytest.approx(loss, abs=1e-6)
    for n, loss in ((16, 10.000726), (512, 10.023244)):
        wide = torch.zeros(n, 2 * n, **double)
        orthogonal = [wide.clone(), wide.clone()]
        orthogonal[0][:, :n], orthogonal[1][:, n:] = torch.eye(n), torch.eye(n)
        assert o.SigLIP().double()(orthogonal).item() == pytest.approx(loss, abs=1e-6)


def test_siglip_on_uneven_ranks_of_the_worked_example():
    sizes = [2, 1]
    cuts = [slice(0, 2), slice(2, 3)]
    copies = [o.SigLIP().double() for _ in sizes]
    values = simulate(2, lambda g: copies[g.rank]([view[cuts[g.rank]] for view in F3], gather=g).item())
    assert values == pytest.approx([0.861339] * 2, abs=1e-6)


def test_losses_of_open_clip():
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(33, 16), dim=1) for _ in range(2))
    s = torch.tensor(20.0)
    assert o.CLIP(NO_SCALE(20.0))([a, b]).item() == pytest.approx(open_clip.loss.ClipLoss()(a, b, s).item(), rel=1e-5)
    theirs = open_clip.loss.SigLipLoss()(a, b, s, torch.tensor(-10.0)).item()
    assert o.SigLIP(LogitScale(20.0, None, -10.0))([a, b]).item() == pytest.approx(theirs, rel=1e-5)


def test_siglip_needs_a_bias():
    with pytest.raises(ValueError, match="needs a bias"):
        o.SigLIP(LogitScale())


@pytest.mark.parametrize("sizes", [[37], [20, 17], [5, 30, 2]])
@pytest.mark.parametrize("bound", [None, 35.0])
def test_the_two_log_sum_exps_of_one_walk(sizes, bound):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(37, 6, generator=g, **double).requires_grad_() for _ in range(2))
    ids_a, ids_b = (torch.randint(0, 9, (37,), generator=g) for _ in range(2))
    weight = torch.randn(2, 37, generator=g, **double)
    s = (a @ b.T).masked_fill(ids_a[:, None] == ids_b[None], -math.inf)
    whole = (weight[0] * s.logsumexp(1)).mean() + (weight[1] * s.logsumexp(0)).mean()
    expected = torch.autograd.grad(whole, [a, b])

    def rank(gather):
        start = sum(sizes[: gather.rank])
        cut = slice(start, start + sizes[gather.rank])
        x, y = a[cut].detach().requires_grad_(), b[cut].detach().requires_grad_()
        rows = gather(len(x))
        lse = logsumexp_both(x, y, ids_a[cut], ids_b[cut], rows, bound, block=8)
        loss = rows.mean(lse[0] * weight[0, cut]) + rows.mean(lse[1] * weight[1, cut])
        return loss.item(), torch.autograd.grad(loss, [x, y])

    results = simulate(len(sizes), rank)
    for value, _ in results:
        assert value == pytest.approx(whole.item(), abs=1e-12)
    for k in range(2):
        joined = torch.cat([grads[k] for _, grads in results]) / len(sizes)
        torch.testing.assert_close(joined, expected[k], atol=1e-12, rtol=0)


@pytest.mark.parametrize("sizes", [[37], [20, 17], [5, 30, 2]])
def test_softplus_sums_round_the_ring(sizes):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(37, 6, generator=g, **double).requires_grad_() for _ in range(2))
    bias, weight = torch.tensor(-1.5, requires_grad=True, **double), torch.randn(37, generator=g, **double)
    whole = (weight * F.softplus(a @ b.T + bias).sum(1)).mean()
    expected = torch.autograd.grad(whole, [a, b, bias])

    def rank(gather):
        start = sum(sizes[: gather.rank])
        cut = slice(start, start + sizes[gather.rank])
        x, y, c = (t.detach().requires_grad_() for t in (a[cut], b[cut], bias))
        rows = gather(len(x))
        loss = rows.mean(softplus_sums(x, y, c, rows, block=8) * weight[cut])
        return torch.autograd.grad(loss, [x, y, c])

    results = simulate(len(sizes), rank)
    for k in range(2):
        joined = torch.cat([grads[k] for grads in results]) / len(sizes)
        torch.testing.assert_close(joined, expected[k], atol=1e-12, rtol=0)
    mean = sum(grads[2] for grads in results) / len(sizes)
    torch.testing.assert_close(mean, expected[2], atol=1e-12, rtol=0)


def test_the_core_never_holds_the_matrix():
    """4,096 rows of float32: the dense matrix would have 64 MB."""
    n = 4096
    a, b = (F.normalize(torch.randn(n, 8), dim=1).requires_grad_() for _ in range(2))
    biggest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                biggest = max(biggest, out.numel())
            return out

    ids = LOCAL(n).index()
    with Watch():
        sum(x.sum() for x in logsumexp_both(a, b, ids, ids, LOCAL(n), 1.0)).backward()
        softplus_sums(a, b, torch.zeros(()), LOCAL(n)).sum().backward()
    assert biggest <= 512 * 512


@pytest.mark.parametrize("start, end", [(math.exp(6), 100), (math.exp(-1), 1), (50, 50)])
def test_the_clamp(start, end):
    scale = LogitScale(start)
    scale.clamp()
    assert scale().item() == pytest.approx(end, rel=1e-5)


def test_the_scale_stays_float32_and_does_not_decay():
    holder = nn.Sequential(nn.Linear(2, 2), LogitScale(10.0, None, -10.0)).bfloat16()
    scale = holder[1]
    assert holder[0].weight.dtype == torch.bfloat16
    assert scale.log_scale.dtype == scale.bias.dtype == torch.float32
    plain = next(group for group in groups_of(holder) if group.get("adapt") is False)
    assert any(p is scale.log_scale for p in plain["params"])
    assert any(p is scale.bias for p in plain["params"])


def test_bad_scales_are_refused():
    with pytest.raises(ValueError, match="initial must be > 0"):
        LogitScale(0.0)
    with pytest.raises(ValueError, match="low <= high"):
        LogitScale(1.0, (3.0, 2.0))
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\)"):
        o.CLIP(smoothing=1.0)
