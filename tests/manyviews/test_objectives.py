"""Every objective: worked numbers, dense reference, gradients, ranks, groups, precision, invariances, errors."""

import math
import re
from inspect import signature

import pytest
import torch
import torch.nn.functional as F

from manyviews import objectives as o
from manyviews.distributed import simulate
from tests.manyviews import points_table, text_table
from tests.manyviews import references as ref
from tests.manyviews.objectives_table import CASES, GROUP

T3 = ref.T3
CASES = [*CASES, *text_table.CASES, *points_table.CASES]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
double = {"dtype": torch.float64}


def random_views(v, n=11, d=5, seed=0):
    return list(torch.randn(v, n, d, generator=torch.Generator().manual_seed(seed), **double))


def gradients(loss, views):
    return torch.autograd.grad(loss, views)


def test_every_objective_of_the_package_is_in_the_table():
    tested = {type(case.build()) for case in CASES}
    assert tested == {getattr(o, name) for name in o.__all__} - {o.Objective}


@pytest.mark.parametrize("case", [c for c in CASES if c.two is not None], ids=lambda case: case.name)
def test_worked_numbers(case):
    assert case.build(2)(T3[:2]).item() == pytest.approx(case.two, abs=1e-6 if "Hard" in case.name else 1e-7)
    assert case.build(2).float()(T3[:2].float()).item() == pytest.approx(case.two, abs=1e-5)
    if case.three is not None:
        assert case.build(2)(T3).item() == pytest.approx(case.three, abs=1e-7)


def batch(case, grouped=False, n=11, d=None):
    """Random views, their context, and d; AMCL's two heads of three side by side need 6."""
    d = d or (6 if "AMCL" in case.name or case.name in ("GroupWhitened", "ImageVolume") else case.width)
    context = case.context(n, d)
    if grouped and case.grouped:
        context["group"] = GROUP[:n]
    return random_views(case.views, n, d), context, d


def part(value, cut):
    """A rank's share of a context: per-image tensors, or lists and tuples of them."""
    if isinstance(value, torch.Tensor):
        return value[cut]
    parts = [part(each, cut) for each in value]
    return type(value)(*parts) if hasattr(value, "_fields") else parts


def cut_context(case, context, cut):
    return {name: value if name in case.uncut else part(value, cut) for name, value in context.items()}


def cast(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if not isinstance(value, list | tuple):
        return value
    parts = [cast(each, dtype) for each in value]
    return type(value)(*parts) if hasattr(value, "_fields") else parts


def close(ours, dense, tolerance):
    for a, b in zip(ours, dense, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, atol=tolerance, rtol=0)


@every
@pytest.mark.parametrize("grouped", [False, True])
def test_value_and_gradients_equal_the_dense_reference(case, grouped):
    """Of the views, and of what the objective itself learns."""
    views, context, d = batch(case, grouped)
    views = [view.requires_grad_() for view in views]
    mine, other = case.build(d), case.build(d)
    ours, dense = mine(views, **context), case.reference(views, objective=other, **context)
    assert ours.item() == pytest.approx(dense.item(), abs=1e-10)
    for loss, objective in ((ours, mine), (dense, other)):
        learnt = list(objective.parameters())
        grads = torch.autograd.grad(loss, [*views, *learnt], allow_unused=True)
        if objective is mine:
            kept = grads
    close(kept, grads, 1e-10)


# Where weights are detached the numeric gradient is another function's; the dense reference detaches likewise.
@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=lambda case: case.name)
def test_gradcheck(case):
    views, context, d = batch(case, n=7 if case.name == "WMSE" else 4)
    views = tuple(view.requires_grad_() for view in views)
    assert torch.autograd.gradcheck(lambda *z: case.build(d)(list(z), **context), views)


@every
@pytest.mark.parametrize("sizes", [[11], [6, 5], [3, 3, 3, 2], [1, 10]])
def test_ranks_agree_with_one_process(case, sizes):
    """Value and state on every rank, and gradients after DDP's mean, equal those of one process on the whole batch."""
    views, context, d = batch(case, grouped=True)
    leaves = [view.clone().requires_grad_() for view in views]
    alone = case.build(d)
    whole = alone(leaves, **context)
    expected = torch.autograd.grad(whole, [*leaves, *alone.parameters()], allow_unused=True)
    copies = [case.build(d) for _ in sizes]  # seeds are global: before the threads start

    def rank(gather):
        start = sum(sizes[: gather.rank])
        cut = slice(start, start + sizes[gather.rank])
        mine = [view[cut].clone().requires_grad_() for view in views]
        objective = copies[gather.rank]
        loss = objective(mine, gather=gather, **cut_context(case, context, cut))
        grads = torch.autograd.grad(loss, [*mine, *objective.parameters()], allow_unused=True)
        return loss.item(), grads, dict(objective.named_buffers())

    results = simulate(len(sizes), rank)
    for value, _, buffers in results:
        assert value == pytest.approx(whole.item(), abs=1e-10)
        for name, buffer in alone.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, atol=1e-10, rtol=0, msg=name)
    for place, grad in enumerate(expected):
        if grad is None:
            continue
        if place < len(views):
            joined = torch.cat([grads[place] for _, grads, _ in results]) / len(sizes)  # DDP's mean over ranks
        else:
            joined = sum(grads[place] for _, grads, _ in results) / len(sizes)
        torch.testing.assert_close(joined, grad, atol=1e-10, rtol=0)


@every
def test_invariances(case):
    views, context, d = batch(case)
    loss = case.build(d)(views, **context).item()
    scale = torch.rand(11, 1, **double) + 0.5
    rotation = torch.linalg.qr(torch.randn(d, d, **double)).Q
    shuffle = torch.randperm(11)

    def with_targets(change):
        return {**context, "targets": change(context["targets"])} if "targets" in context else context

    changes = {
        "scale": lambda z: [view * scale for view in z],
        "rotation": lambda z: [view @ rotation for view in z],
        "shuffle": lambda z: [view[shuffle] for view in z],
        "swap": lambda z: z[::-1],
    }
    for name in case.keeps.split():
        other = cut_context(case, context, shuffle) if name == "shuffle" else with_targets(changes[name])
        assert case.build(d)(changes[name](views), **other).item() == pytest.approx(loss, abs=1e-9), name


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_and_autocast_are_computed_in_float32(case, dtype):
    views, context, d = batch(case)
    views = [view.to(dtype) for view in views]
    single = {name: cast(value, dtype) for name, value in context.items()}
    context = {name: cast(value, torch.float64) for name, value in single.items()}
    objective = case.build(d).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(views, **single)
    exact = case.build(d)([view.double() for view in views], **context).item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=5e-5, abs=5e-5)


@every
def test_bad_views_are_refused(case):
    z = torch.randn(4, 3)
    objective = case.build(3)
    few, many = [z] * (objective.fewest - 1), [z] * max(1, objective.fewest - 1)
    for views, message in (
        (few, f"{objective.fewest} or more"),
        ([*many, z[:3]], "same n and D"),
        ([z[0]] * (len(many) + 1), "same n and D"),
    ):
        with pytest.raises(ValueError, match=message):
            objective(views)
    if case.exactly_two and objective.fewest == 2:
        with pytest.raises(ValueError, match="defined for 2 views, got 3.*MVDHEL"):
            objective([z, z, z], **case.context(4, 3))


@every
def test_what_the_context_lacks_is_named(case):
    for name in case.context(4, 3).keys() & {"targets", "label", "index", "mean"}:
        if name == "targets" and case.views == 2 and case.name in ("AMCL-MoCo", "HydraMoCo"):
            continue
        views, context, d = batch(case)
        del context[name]
        with pytest.raises(ValueError, match=rf"needs {name}"):
            case.build(d)(views, **context)


@every
def test_what_the_objective_does_not_take_is_refused(case):
    views, context, d = batch(case)
    objective = case.build(d)
    with pytest.raises(TypeError, match=rf"{type(objective).__name__} takes .*'groups'"):
        objective(views, **context, groups=GROUP)
    if "group" in objective.takes():
        with pytest.raises(TypeError, match="'groups'; did you mean group?"):
            objective(views, **context, groups=GROUP)
    if "present" not in objective.takes():
        with pytest.raises(ValueError, match=r"wants all views of every sample.*data\.missing"):
            objective(views, **context, present=torch.ones(11, case.views, dtype=torch.bool))


def test_only_wrappers_pass_a_context_on():
    for case in CASES:
        objective = case.build(6)
        passes_on = any(p.kind is p.VAR_KEYWORD for p in signature(objective.loss).parameters.values())
        assert not passes_on or type(objective).takes is not o.Objective.takes, case.name


@pytest.mark.parametrize(
    ("case", "what"),
    [(case, what) for what in ("one image", "one group") for case in CASES if what == "one image" or case.grouped],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_without_negatives_there_is_a_value_or_a_word(case, what):
    """A batch of one image, or whose images are all of one group: never NaN, never an error from within."""
    views, context, d = batch(case)
    if what == "one image":
        cut = slice(3, 4)
        views, context = [view[cut] for view in views], cut_context(case, context, cut)
    else:
        context["group"] = torch.zeros(11, dtype=torch.int64)
    views, objective = [view.requires_grad_() for view in views], case.build(d)
    try:
        loss = objective(views, **context)
    except ValueError as error:
        assert what == "one image" and re.search(r"got 1, expected \d or more|whitens 1 rows", str(error))
        return
    assert torch.isfinite(loss)
    grads = torch.autograd.grad(loss, views, allow_unused=True)
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("make", [o.MVInfoNCE, o.PolyView, lambda t: o.PolyView(t, "arithmetic")])
def test_won_positives_keep_their_digits(make):
    """Two images, opposite; their two views equal: log(1 + 2 e^(-2/t)), in float32 too. As log(e^(1/t) + ...) - 1/t it
    would be 0, or a rounding error of 5e-7."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for t in (0.05, 0.1):
        assert make(t)([z, z]).item() == pytest.approx(math.log1p(2 * math.exp(-2 / t)), rel=1e-5)


def test_one_context_of_half_precision_is_the_value_of_full_precision():
    """Views and targets (4, 8) in bf16, labels 0, 1, 0, 1: as of the same numbers in float64."""
    g = torch.Generator().manual_seed(0)
    views, targets = ([torch.randn(4, 8, generator=g).bfloat16() for _ in range(2)] for _ in range(2))
    label = torch.tensor([0, 1, 0, 1])
    partner, gate = label.flip(0), torch.rand(4, 8, generator=g).bfloat16()
    torch.manual_seed(0)
    objective = o.HydraMoCo(o.Hydra(2, 8), alpha=0.5)
    context = {"label": label, "partner": partner}
    half = objective(views, targets=targets, gate=gate, **context)
    full = objective.double()(
        [v.double() for v in views], targets=[t.double() for t in targets], gate=gate.double(), **context
    )
    assert half.dtype == torch.float32 and half.item() == pytest.approx(full.item(), abs=2e-6)


@pytest.mark.parametrize("make", [o.NTXent, o.DCL, o.MVInfoNCE, o.MVDHEL, o.PairwiseViews, o.AverageViews, o.PolyView])
def test_temperature_must_be_positive(make):
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        make(-1)


# Identities of the papers.


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
