"""Every objective: worked numbers, dense reference, gradients, ranks, groups, precision, invariances, errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from manyviews import objectives as o
from manyviews.distributed import simulate
from tests.manyviews import references as ref
from tests.manyviews.objectives_table import CASES

T3 = ref.T3
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
double = {"dtype": torch.float64}


def random_views(v, n=11, d=5, seed=0):
    return list(torch.randn(v, n, d, generator=torch.Generator().manual_seed(seed), **double))


def gradients(loss, views):
    return torch.autograd.grad(loss, views)


def test_every_objective_of_the_package_is_in_the_table():
    tested = {type(case.make()) for case in CASES}
    assert tested == {getattr(o, name) for name in o.__all__} - {o.Objective}


@every
def test_worked_numbers(case):
    assert case.make()(T3[:2]).item() == pytest.approx(case.two, abs=1e-7)
    assert case.make()(T3[:2].float()).item() == pytest.approx(case.two, abs=1e-5)
    if case.three is not None:
        assert case.make()(T3).item() == pytest.approx(case.three, abs=1e-7)


@every
@pytest.mark.parametrize("grouped", [False, True])
def test_value_and_gradient_equal_the_dense_reference(case, grouped):
    views = [view.requires_grad_() for view in random_views(case.views)]
    group = torch.tensor([0, 1, 0, -1, -1, 2, 2, 2, 3, -1, 4]) if grouped else None
    ours, dense = case.make()(views, group=group), case.reference(views, group)
    assert ours.item() == pytest.approx(dense.item(), abs=1e-12)
    for a, b in zip(gradients(ours, views), gradients(dense, views), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


# DCLW detaches its weights, so the numeric gradient is another function's; its dense reference detaches likewise.
@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith("DCLW")], ids=lambda case: case.name)
def test_gradcheck(case):
    views = tuple(view.requires_grad_() for view in random_views(case.views, n=4, d=3))
    assert torch.autograd.gradcheck(lambda *z: case.make()(list(z)), views)


@every
@pytest.mark.parametrize("sizes", [[11], [6, 5], [3, 3, 3, 2], [1, 10]])
def test_ranks_agree_with_one_process(case, sizes):
    """Value on every rank, and gradient after DDP's mean, equal those of one process on the concatenated batch."""
    views = random_views(case.views)
    group = torch.tensor([0, 1, 0, -1, -1, 2, 2, 2, 3, -1, 4])
    leaves = [view.clone().requires_grad_() for view in views]
    whole = case.make()(leaves, group=group)
    expected = gradients(whole, leaves)

    def rank(gather):
        mine = [view.split(sizes)[gather.rank].clone().requires_grad_() for view in views]
        loss = case.make()(mine, gather=gather, group=group.split(sizes)[gather.rank])
        return loss.item(), gradients(loss, mine)

    results = simulate(len(sizes), rank)
    for value, _ in results:
        assert value == pytest.approx(whole.item(), abs=1e-10)
    for v, grad in enumerate(expected):
        joined = torch.cat([grads[v] for _, grads in results]) / len(sizes)  # DDP's mean over ranks
        torch.testing.assert_close(joined, grad, atol=1e-10, rtol=0)


@every
def test_invariances(case):
    views = random_views(case.views)
    loss = case.make()(views).item()
    scale = torch.rand(11, 1, **double) + 0.5
    rotation = torch.linalg.qr(torch.randn(5, 5, **double)).Q
    shuffle = torch.randperm(11)
    for changed in (
        [view * scale for view in views],
        [view @ rotation for view in views],
        [view[shuffle] for view in views],
        views[::-1],
    ):
        assert case.make()(changed).item() == pytest.approx(loss, abs=1e-10)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_and_autocast_are_computed_in_float32(case, dtype):
    views = [view.to(dtype) for view in random_views(case.views, n=64, d=16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.make()(views)
    exact = case.make()([view.double() for view in views]).item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=2e-5, abs=2e-5)


@every
def test_bad_views_are_refused(case):
    z = torch.randn(4, 3)
    for views, message in (([z], "2 or more"), ([z, z[:3]], "same n and D"), ([z[0], z[1]], "same n and D")):
        with pytest.raises(ValueError, match=message):
            case.make()(views)
    if case.three is None:
        with pytest.raises(ValueError, match="defined for 2 views, got 3.*MVDHEL"):
            case.make()([z, z, z])


@pytest.mark.parametrize("make", [o.NTXent, o.DCL, o.MVInfoNCE, o.MVDHEL, o.PairwiseViews, o.AverageViews, o.PolyView])
def test_temperature_must_be_positive(make):
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        make(-1)


# Identities of the papers and cards.


def test_ntxent_gradient_of_the_worked_example():
    z1, z2 = T3[0].clone().requires_grad_(), T3[1]
    (grad,) = gradients(o.NTXent(0.5)([z1, z2]), [z1])
    expected = torch.tensor([[0, -0.025814], [0.463007, -0.347255], [0.198823, 0.265097]], **double)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close((grad * z1).sum(1), torch.zeros(3, **double), atol=1e-12, rtol=0)


def test_collapsed_embeddings_give_the_known_constants():
    z = torch.ones(3, 2, **double)
    for t in (0.1, 0.5, 2.0):
        assert o.NTXent(t)([z, z]).item() == pytest.approx(math.log(5))
        assert o.DCL(t)([z, z]).item() == pytest.approx(math.log(4))
    assert o.MVInfoNCE(0.5)([z] * 3).item() == pytest.approx(math.log((3 * 3 - 1) / 2))
    assert o.MVDHEL(0.5)([z] * 2).item() == pytest.approx(3.38629436, abs=1e-7)
    assert o.MVDHEL(0.5)([z] * 3).item() == pytest.approx(4.98082925, abs=1e-7)


def test_two_views_reduce_to_ntxent_and_dhel():
    views, t = random_views(2), 0.3
    ntxent = o.NTXent(t)(views).item()
    for objective in (o.PairwiseViews(t), o.AverageViews(t), o.PolyView(t), o.PolyView(t, kind="arithmetic")):
        assert objective(views).item() == pytest.approx(ntxent, abs=1e-12)
    assert o.MVInfoNCE(t)(views).item() >= ntxent
    assert o.MVInfoNCE(t)([views[0]] * 2).item() == pytest.approx(o.NTXent(t)([views[0]] * 2).item(), abs=1e-12)


def test_ntxent_is_dcl_passed_through_softplus():
    views, t, n = random_views(2), 0.2, 11
    z = torch.cat([F.normalize(view, dim=1) for view in views])
    s = z @ z.T / t
    positives = s[torch.arange(2 * n), (torch.arange(2 * n) + n) % (2 * n)]
    own = torch.arange(2 * n) % n
    negatives = s.masked_fill(own[:, None] == own, -math.inf).logsumexp(1)
    extra = F.softplus(positives - negatives).mean()
    assert o.NTXent(t)(views).item() == pytest.approx((o.DCL(t)(views) + extra).item(), abs=1e-12)


def test_dclw_weights():
    dclw = o.DCL(0.1, sigma=0.5)
    positives = torch.tensor([0.80, 0.60, 0.936], **double)
    w = dclw._weights(positives, simulate(1, lambda gather: gather(3))[0])
    torch.testing.assert_close(w, torch.tensor([0.994270, 1.325839, 0.679891], **double), atol=1e-6, rtol=0)
    assert w.mean().item() == pytest.approx(1)
    views = random_views(2)
    assert o.DCL(0.1, sigma=1e9)(views).item() == pytest.approx(o.DCL(0.1)(views).item(), abs=1e-7)


def test_dcl_positives_pull_with_constant_force():
    """With the negatives' part taken away, what is left is -mean(s_pos)/t: no other similarity enters a positive."""
    views, t = random_views(2), 0.5
    u = torch.cat([F.normalize(view, dim=1) for view in views])
    own = torch.arange(22) % 11
    negatives = (u @ u.T / t).masked_fill(own[:, None] == own, -math.inf).logsumexp(1).mean()
    positives = (u[:11] * u[11:]).sum(1).mean() / t
    assert (o.DCL(t)(views) - negatives).item() == pytest.approx(-positives.item(), abs=1e-12)


def test_mvdhel_denominator_ignores_a_rotation_of_one_view():
    views, t = random_views(3), 0.5
    rotation = torch.linalg.qr(torch.randn(5, 5, **double)).Q
    turned = [views[0] @ rotation, *views[1:]]

    def denominator(z):
        u = [F.normalize(view, dim=1) for view in z]
        s = torch.stack([a @ b.T for a, b in ((x, x) for x in u)]) / t
        return s.masked_fill(torch.eye(11, dtype=torch.bool), -math.inf).logsumexp(2).sum(0).mean()

    def ours(z):
        u = torch.stack([F.normalize(view, dim=1) for view in z])
        own = torch.einsum("lnd,mnd->lmn", u, u) / t
        pairs = own[~torch.eye(3, dtype=torch.bool)].logsumexp(0).mean()
        return o.MVDHEL(t, ordered=True)(z) + pairs

    assert ours(views).item() == pytest.approx(denominator(views).item(), abs=1e-12)
    assert ours(turned).item() == pytest.approx(ours(views).item(), abs=1e-12)


def test_tiny_temperature_and_many_views_do_not_overflow():
    views = [F.normalize(view.float(), dim=1).requires_grad_() for view in random_views(8, n=256, d=16)]
    for objective in (o.MVDHEL(0.01), o.MVInfoNCE(0.01), o.PolyView(0.01)):
        loss = objective(views)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in gradients(loss, views))


def test_a_batch_of_one_group_has_no_negatives_and_no_nan():
    views = [view.requires_grad_() for view in random_views(2, n=4)]
    loss = o.NTXent(0.5)(views, group=torch.zeros(4, dtype=torch.int64))
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients(loss, views))
