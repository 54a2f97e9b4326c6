"""Worked numbers and identities of objectives that need more than views: queues, targets, labels, per-sample state."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from manyviews import objectives as o
from manyviews.distributed import simulate
from manyviews.heads import PrototypeHead, Prototypes
from manyviews.monitoring import diagnostics
from manyviews.objectives.amcl import omega
from manyviews.objectives.barlow import cross_correlation
from manyviews.objectives.meow import concentrations, weighted
from manyviews.objectives.mochi import Mixing
from manyviews.objectives.swav import sinkhorn
from manyviews.objectives.whitening import cholesky_whiten, group_whiten, inverse_root
from tests.manyviews.objectives_table import draw
from tests.manyviews.references import T3

double = {"dtype": torch.float64}
Z1, Z2, Z3 = T3
A = torch.tensor([[1, 2], [2, -1], [-1, 0], [0, 1]], **double)
B = torch.tensor([[0.5, 1.5], [2, 0], [-1.5, 0.5], [1, 1]], **double)
LOCAL = simulate(1, lambda gather: gather(3))[0]


def rows(*values):
    return torch.tensor(values, **double)


def approx(value, to=1e-7):
    return pytest.approx(value, abs=to)


def with_queue(objective, entries):
    objective.double()
    (objective.support if isinstance(objective, o.NNCLR) else objective.queue).items.copy_(entries)
    return objective


# MoCo


@pytest.mark.parametrize(("t", "value"), [(0.2, 0.00999514), (0.5, 0.17081255)])
def test_infonce_with_a_queue(t, value):
    objective = with_queue(o.InfoNCE(t, queue_size=2, dim=2), rows([0, -1], [-0.6, -0.8]))
    assert objective([Z1], targets=[Z2]).item() == approx(value)


@pytest.mark.parametrize(("t", "value"), [(0.5, 1.30056468), (0.2, 0.64812829)])
def test_moco_v3_scale(t, value):
    assert o.InfoNCE(t, scale="official")([Z1, Z2], targets=[Z2, Z1]).item() == approx(value)
    assert o.InfoNCE(t)([Z1, Z2], targets=[Z2, Z1]).item() == approx(value / (4 * t))


def test_cross_view_infonce():
    assert o.InfoNCE(0.5)([Z1], targets=[Z2]).item() == approx(0.63819488)
    assert o.InfoNCE(0.5)([Z2], targets=[Z1]).item() == approx(0.66236979)
    ones = torch.ones(3, 2, **double)
    assert o.InfoNCE(0.3)([ones], targets=[ones]).item() == approx(math.log(3))


@pytest.mark.parametrize("objective", [o.InfoNCE(0.2), o.InfoNCE(0.2, 4, 2), o.BYOL(), o.SimSiam(), o.NNCLR(0.2, 4, 2)])
def test_targets_take_no_gradient(objective):
    view, target = Z1.clone().requires_grad_(), Z2.clone().requires_grad_()
    objective.double()([view], targets=[target]).backward()
    assert view.grad.abs().sum() > 0 and target.grad is None


def test_the_queue_is_first_in_first_out_and_wraps():
    objective = o.InfoNCE(0.2, queue_size=6, dim=2).double()
    start = objective.queue.items.clone()
    objective([Z1], targets=[Z2])
    torch.testing.assert_close(objective.queue.items, torch.cat([Z2, start[3:]]))
    objective([Z1], targets=[Z3])
    torch.testing.assert_close(objective.queue.items, torch.cat([Z2, Z3]))
    assert objective.diagnostics["queue_filled"] == 1 and objective.diagnostics["queue_age"] == 2
    objective([Z1], targets=[2 * Z1])
    torch.testing.assert_close(objective.queue.items, torch.cat([Z1, Z3]))
    assert objective.queue.pushed == 9


def test_a_queue_shorter_than_the_batch_keeps_its_last():
    objective = o.InfoNCE(0.2, queue_size=2, dim=2).double()
    objective([Z1], targets=[Z2])
    torch.testing.assert_close(objective.queue.items, Z2[1:])


# MoCHi


@pytest.mark.parametrize(("t", "host", "mixed"), [(0.2, 0.37938156, 1.56543012), (0.5, 0.82701409, 1.53744605)])
def test_mochi(t, host, mixed):
    q, k = rows([1, 0]), rows([0.8, 0.6])
    bank = rows([0.6, 0.8], [0, 1], [-0.6, 0.8], [0.28, -0.96])
    objective = with_queue(o.MoCHi(t, 4, 2, hard=2, mixed=1, mixed_with_query=1, from_epoch=0), bank)
    zero, one = torch.tensor([[0]]), torch.tensor([[1]])
    draws = Mixing(zero, one, rows([0.5]), zero, rows([0.25]))
    expected = rows([0.983870, -0.178885], [0.759257, 0.650791])
    torch.testing.assert_close(objective.synthesise(q, draws)[0], expected, atol=1e-6, rtol=0)
    ends = Mixing(zero, one, rows([1.0]), zero, rows([0.0]))
    torch.testing.assert_close(objective.synthesise(q, ends)[0], bank[[0, 0]])  # entries themselves
    assert objective([q], targets=[k], draws=draws).item() == approx(mixed)
    plain = with_queue(o.MoCHi(t, 4, 2, hard=2, mixed=0, mixed_with_query=0), bank)
    assert plain([q], targets=[k]).item() == approx(host)
    waiting = with_queue(o.MoCHi(t, 4, 2, hard=2, mixed=1, mixed_with_query=1, from_epoch=3), bank)
    assert waiting([q], targets=[k], epoch=2).item() == approx(host)


def test_mochi_refuses_more_hard_negatives_than_entries():
    with pytest.raises(ValueError, match="hard=9 must lie between 1 and queue_size=4"):
        o.MoCHi(queue_size=4, hard=9)


# BYOL, SimSiam


def test_byol_and_simsiam():
    views, targets = [Z1, Z2], [Z2, Z3]
    assert o.BYOL()(views, targets=targets).item() == approx(0.94720000)
    assert o.SimSiam()(views, targets=targets).item() == approx(-0.76320000)
    assert o.BYOL()([Z1, Z2], targets=[Z1, Z2]).item() == approx(0)
    assert o.BYOL()([Z1, Z2], targets=[-Z1, -Z2]).item() == approx(8)
    p = Z1.clone().requires_grad_()
    o.BYOL()([p], targets=[Z2]).backward()
    torch.testing.assert_close((p.grad * Z1).sum(1), torch.zeros(3, **double), atol=1e-12, rtol=0)


# Barlow Twins, VICReg


def test_barlow_twins():
    assert o.BarlowTwins(0.005, eps=0)([A, B]).item() == approx(0.01546858)
    assert o.BarlowTwins(0.005, eps=1e-5)([A, B]).item() == approx(0.01547009)
    c = cross_correlation(A, B, simulate(1, lambda gather: gather(4))[0], 0)
    torch.testing.assert_close(c, rows([0.877058, -0.2], [-0.175412, 1]), atol=1e-6, rtol=0)
    whole = o.BarlowTwins(0.005, eps=0)
    changed = whole([A * rows(2, 3) + 1, B * rows(0.5, 7) - 4]).item()
    assert changed == approx(whole([A, B]).item())
    assert whole([A * rows(-1, 1), B * rows(-1, 1)]).item() == approx(whole([A, B]).item())
    rotation = torch.linalg.qr(draw(2, 2)).Q
    assert abs(whole([A @ rotation, B @ rotation]).item() - whole([A, B]).item()) > 1e-4
    whole([A, A])
    assert whole.diagnostics["on_diagonal"].item() == approx(0)


def test_a_constant_column_gives_no_nan():
    a = A.clone().requires_grad_()
    o.BarlowTwins()([a * rows(1, 0), B * rows(1, 0)]).backward()
    assert a.grad.isfinite().all()


def test_vicreg():
    assert o.VICReg()([A, B]).item() == approx(11.72904714)
    assert o.VICReg()([0.3 * A, 0.3 * B]).item() == approx(17.02947953)
    ones = torch.ones(4, 2, **double)
    assert o.VICReg()([ones, ones]).item() == approx(24.75)
    assert o.VICReg()([A + 5, B + 5]).item() == approx(11.72904714)


# SwAV


def test_swav():
    prototypes = rows([1, 0], [0, 1], [-1, 0])
    q = sinkhorn(Z1 @ prototypes.T, 0.5, 3)
    expected = rows([0.782553, 0.163059, 0.054387], [0.274641, 0.630818, 0.094541], [0.008375, 0.212035, 0.779591])
    torch.testing.assert_close(q, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(q.sum(1), torch.ones(3, **double))
    torch.testing.assert_close(q.sum(0), rows(1.066, 1.006, 0.929), atol=1e-3, rtol=0)
    for t, epsilon, value in ((0.5, 0.5, 0.82698495), (0.1, 0.05, 0.08452948)):
        objective = o.SwAV(2, 3, t, epsilon).double()
        objective.prototypes.data = prototypes
        assert objective([Z1, Z2]).item() == approx(value)


def test_swav_learns_its_prototypes_as_they_are():
    objective = o.SwAV(2, 3, 0.5, 0.5).double()
    objective.prototypes.data = rows([1, 0], [0, 1], [-1, 0])
    objective([Z1, Z2]).backward()
    expected = rows([0.0428321339, -0.0442328715], [-0.0478922279, 0.1101122386], [0.0050600940, -0.0658793671])
    torch.testing.assert_close(objective.prototypes.grad, expected, atol=1e-9, rtol=0)


def test_sinkhorn_properties():
    scores = draw(12, 4)
    q = sinkhorn(scores, 0.5, 3)
    torch.testing.assert_close(sinkhorn(scores + 7, 0.5, 3), q)
    torch.testing.assert_close(sinkhorn(scores + rows(1, -2, 3, 0.5), 0.5, 3), q)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 500).sum(0), torch.full((4,), 3.0, **double))
    assert sinkhorn(scores.float(), 0.001, 3).isfinite().all()


def test_swav_prototypes_wait_and_the_queue_joins_when_full():
    objective = o.SwAV(2, 3, queue_size=6, queue_from=1, frozen_epochs=1).double()
    z = [Z1.clone().requires_grad_(), Z2]
    objective(z, epoch=0).backward()
    assert objective.prototypes.grad.abs().sum() == 0 and z[0].grad.abs().sum() > 0
    without = o.SwAV(2, 3).double()
    without.load_state_dict({"prototypes": objective.prototypes.data})
    assert objective([Z1, Z2], epoch=1).item() == approx(without([Z1, Z2]).item())  # half full
    assert abs(objective([Z3, Z2], epoch=1).item() - without([Z3, Z2]).item()) > 1e-6
    objective.prototypes.grad = None
    objective([Z1, Z2], epoch=1).backward()
    assert objective.prototypes.grad.abs().sum() > 0
    assert 0 < objective.diagnostics["prototypes_used"] <= 1


def test_deepcluster_labels_come_from_the_last_epoch():
    views = [F.normalize(draw(12, 4, seed=s), dim=1) for s in (1, 2)]
    objective = o.DeepCluster(12, 4, (3, 2)).double()
    index = torch.arange(12)
    assert objective(views, index=index, epoch=0).item() == 0  # nothing is known yet
    assert objective.diagnostics["labelled"] == 0
    torch.testing.assert_close(objective.memory.items, torch.stack(views))
    assert objective(views, index=index, epoch=1).item() > 0
    assert objective.diagnostics["labelled"] == 1
    assert set(objective.memory.assigned[0].tolist()) == {0, 1, 2}
    before = objective.memory.assigned.clone()
    objective([view.flip(0) for view in views], index=index, epoch=1)
    assert torch.equal(objective.memory.assigned, before)  # only at the start of an epoch


# NNCLR


@pytest.mark.parametrize(
    ("t", "decoupled", "value"), [(0.5, False, 0.34071456), (0.1, False, 0.02909141), (0.5, True, -1.13091393)]
)
def test_nnclr(t, decoupled, value):
    support = rows([0, 1], [1, 0], [-1, 0])
    objective = with_queue(o.NNCLR(t, 3, 2, decoupled), support)
    label = torch.tensor([4, 5, 6])
    assert objective([Z1, Z2], targets=[Z2, Z1], label=label).item() == approx(value)
    torch.testing.assert_close(objective.support.items, Z1)  # the first view's, after the loss
    assert torch.equal(objective.labels, label)
    objective([Z1, Z2], targets=[Z2, Z1], label=label)
    assert objective.diagnostics["neighbour_purity"].item() == 1  # now each finds itself


def test_nnclr_that_finds_itself_is_cross_view_infonce():
    objective = with_queue(o.NNCLR(0.5, 3, 2), Z1)
    assert objective([Z2], targets=[Z1]).item() == approx(0.63819488)


# Hallucinator


class Part(torch.nn.Module):
    """In the place of the MLP: gives back the query (0) or what lies beyond it (1)."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, x):
        return x.chunk(2, 1)[self.which]


def hallucinator(host, which=1, entries=None, **options):
    objective = o.Hallucinator(host if entries is None else with_queue(host, rows(*entries)), dim=2, **options)
    objective.mlp = Part(which)
    return objective.double()


@pytest.mark.parametrize(("length", "cosine", "value"), [(1, 0.53687549, 1.52125024), (2, 0.56969552, 1.41179845)])
def test_hallucinator_over_moco(length, cosine, value):
    """The query is not normalised before the step."""
    objective = hallucinator(o.InfoNCE(0.2, 1, 2), entries=[[0, 1]])
    key = rows([3, 0])  # which is
    assert objective([length * rows([0.6, 0.8])], targets=[key], strength=torch.ones(1)).item() == approx(value)
    assert objective.diagnostics["hallucinated_to_key"].item() == approx(cosine)
    torch.testing.assert_close(objective.host.queue.items, rows([1, 0]))


def test_hallucinator_over_moco_of_many():
    objective = hallucinator(o.InfoNCE(0.2, 2, 2), entries=[[0, -1], [-0.6, -0.8]])
    q = (Z1 * rows([2], [3], [0.5])).requires_grad_()
    loss = objective([q], targets=[Z2], strength=torch.tensor([0.7]))
    assert loss.item() == approx(0.01032939)
    (grad,) = torch.autograd.grad(loss, q)
    expected = rows([-0.00030598, -0.02768438], [0.00073555, -0.00056265], [-0.01202693, -0.01523649])
    torch.testing.assert_close(grad, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("as_released", "value"), [(True, 1.95506696), (False, 1.46314627)])
def test_hallucinator_over_simclr(as_released, value):
    objective = hallucinator(o.NTXent(0.5), as_released=as_released)
    assert objective([Z1, Z2], strength=torch.ones(1)).item() == approx(value)


@pytest.mark.parametrize(("as_released", "least"), [(True, 1.09861229), (False, 0)])
def test_hallucinator_over_simclr_at_perfect_alignment(as_released, least):
    objective = o.Hallucinator(o.NTXent(0.02), dim=8, as_released=as_released).double()
    objective.mlp = Part(1)
    assert objective([torch.eye(8, **double)] * 2).item() == approx(least)


def test_hallucinator_over_simsiam():
    objective = hallucinator(o.SimSiam())
    loss = objective([Z1, Z2], targets=[Z3, Z2], strength=torch.tensor([1, 0.5]))  # z of view 2, z of view 1
    assert loss.item() == approx(-0.97540578)


@pytest.mark.parametrize("host", [o.InfoNCE(0.5), o.InfoNCE(0.5, 4, 2), o.SimSiam(), o.BYOL()])
def test_hallucinator_that_returns_the_query_is_its_host(host):
    host.double()
    alone = copy.deepcopy(host)([Z1, Z2], targets=[Z2, Z3]).item()
    assert hallucinator(host, which=0)([Z1, Z2], targets=[Z2, Z3]).item() == approx(alone, 1e-12)


def test_hallucinator_queues_keys_once_or_as_released_twice():
    entries = [[0, -1], [-0.6, -0.8], [0.8, -0.6], [1, 0], [0, 1], [-1, 0], [0.6, -0.8]]
    once, two = (hallucinator(o.InfoNCE(0.2, 7, 2), entries=entries, as_released=released) for released in (0, 1))
    losses = [objective([Z1], targets=[Z2], strength=torch.ones(1)).item() for objective in (once, two)]
    assert losses[0] == approx(losses[1], 1e-12)
    torch.testing.assert_close(once.host.queue.items[:4], torch.cat([Z2, rows([1, 0])]))
    torch.testing.assert_close(two.host.queue.items[:6], Z2.repeat_interleave(2, 0))


def test_hallucinator_trains_its_network_and_both_sides():
    torch.manual_seed(0)
    a, b = Z1.clone().requires_grad_(), Z2.clone().requires_grad_()
    objective = o.Hallucinator(o.NTXent(0.5), dim=2).double()
    linear = [layer.weight.shape for layer in objective.mlp[::2]]
    assert linear == [(4, 4), (4, 4), (2, 4)]
    grads = torch.autograd.grad(objective([a, b]), [a, b, *objective.parameters()])
    assert all(grad.abs().sum() > 0 for grad in grads)
    moco = o.Hallucinator(with_queue(o.InfoNCE(0.5, 2, 2), rows([0, -1], [-0.6, -0.8])), dim=2).double()
    moco([a], targets=[b]).backward()
    assert a.grad is not None and b.grad is None
    assert all(p.grad is not None for p in moco.parameters())


def test_hallucinator_draws_one_step_for_the_whole_batch():
    torch.manual_seed(0)
    seen = []
    objective = hallucinator(o.NTXent(0.5), ratio=0.4)
    objective.mlp.register_forward_hook(lambda _m, _i, out: seen.append(((out - Z1) / (Z1 - Z2)).clone()))
    for _ in range(50):
        objective([Z1, Z2])
    steps = torch.stack(seen)
    torch.testing.assert_close(steps, steps[:, :1, :1].expand_as(steps), atol=1e-12, rtol=0)
    assert 0 <= steps.min() < 0.05 and 0.35 < steps.max() <= 0.4


def test_hallucinator_refuses_what_it_cannot_stand_on():
    with pytest.raises(ValueError, match="stands on NTXent .* got VICReg"):
        o.Hallucinator(o.VICReg())
    with pytest.raises(ValueError, match="ratio must be >= 0, got -1"):
        o.Hallucinator(o.NTXent(), ratio=-1)
    with pytest.raises(ValueError, match="made for dim=128, got embeddings of width 2: set dim"):
        o.Hallucinator(o.NTXent())([Z1, Z2])


# SogCLR, iSogCLR


def test_sogclr():
    objective = o.SogCLR(3, 0.5, 0.9).double()
    index = torch.arange(3)
    assert objective([Z1, Z2], index=index).item() == approx(-0.49285138)
    torch.testing.assert_close(objective.log_u.exp(), rows(1.744377, 2.764040, 1.324890), atol=1e-6, rtol=0)
    assert objective([Z1, Z3], index=index).item() == approx(-1.32257546)
    torch.testing.assert_close(objective.log_u.exp(), rows(1.181472, 2.097242, 1.139523), atol=1e-6, rtol=0)


def test_sogclr_gradient_is_t_times_that_of_dcl():
    views, t = [draw(9, 4, seed=s).requires_grad_() for s in (1, 2)], 0.3
    ours = torch.autograd.grad(o.SogCLR(9, t, 1.0).double()(views, index=torch.arange(9)), views)
    dcl = torch.autograd.grad(2 * t * o.DCL(t)(views), views)
    for a, b in zip(ours, dcl, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    objective = o.SogCLR(9, 0.5).double()
    objective([Z1, Z2], index=torch.arange(3))
    gcl = 2 * o.DCL(0.5)([Z1, Z2]).item() - 2 * math.log(4)
    assert gcl == approx(-1.96010075)


def test_sogclr_state_follows_the_sample():
    one, other = (o.SogCLR(5, 0.5, 0.7).double() for _ in range(2))
    shuffle = torch.tensor([2, 0, 1])
    index = torch.tensor([4, 0, 2])
    for _ in range(2):
        one([Z1, Z2], index=index)
        other([Z1[shuffle], Z2[shuffle]], index=index[shuffle])
    torch.testing.assert_close(one.log_u, other.log_u)
    assert one.log_u.isneginf().tolist() == [False, True, False, True, False]


def test_an_index_beyond_the_set_is_refused():
    for objective in (o.SogCLR(3), o.DeepCluster(3, 2, (2,))):
        with pytest.raises(ValueError, match="sample index 3, but the objective was made for samples=3"):
            objective.double()([Z1, Z2], index=torch.tensor([0, 1, 3]))


def test_isogclr():
    objective = o.ISogCLR(3, 0.5, gamma=0.8, rho=0.4, low=0.05, high=1.0, rate=0.03, momentum=0.5).double()
    index = torch.arange(3)
    assert objective([Z1, Z2], index=index).item() == approx(-0.49285138)  # uniform temperature: SogCLR
    momentum, tau = rows(-0.100110, 0.057528, -0.088216), rows(0.503003, 0.498274, 0.502646)
    torch.testing.assert_close(objective.tau_momentum, momentum, atol=1e-6, rtol=0)
    torch.testing.assert_close(objective.tau, tau, atol=1e-6, rtol=0)


def test_isogclr_without_a_rate_is_sogclr_and_its_temperatures_settle_where_kl_is_rho():
    views = [draw(9, 4, seed=s) for s in (1, 2)]
    index = torch.arange(9)
    still, plain = o.ISogCLR(9, 0.5, rate=0).double(), o.SogCLR(9, 0.5, 0.8).double()
    for _ in range(2):
        assert still(views, index=index).item() == approx(plain(views, index=index).item(), 1e-12)
    moving = o.ISogCLR(9, 0.3, gamma=1.0, rho=0.4, rate=0.1, momentum=1.0, low=0.01, high=5.0).double()
    for _ in range(1500):
        moving(views, index=index)
    u = [F.normalize(view, dim=1) for view in views]
    for i in range(9):
        kl = 0.0
        for anchor in u:
            s = torch.stack([anchor[i] @ z[j] for z in u for j in range(9) if j != i]) / moving.tau[i]
            p = s.softmax(0)
            kl += (p * (p * 16).log()).sum().item() / 2
        assert kl == pytest.approx(0.4, abs=1e-3)


def test_isogclr_warns_of_a_rho_beyond_reach_and_stays_in_range(caplog):
    objective = o.ISogCLR(3, 0.1, rho=6.0, rate=1.0)
    for _ in range(3):
        objective([Z1.float(), Z2.float()], index=torch.arange(3))
    assert "rho=6 is not below log(4 negatives)" in caplog.text and caplog.text.count("rho=6") == 1
    assert torch.equal(objective.tau, torch.full((3,), 0.05))


# cMIM


def test_cmim():
    mean, zero = rows([0.5, 0], [0.6, 0.3], [-0.8, 0.1]), torch.zeros(3, 2, **double)
    for t, scale, value in ((0.5, 1.0, 2.33317723), (0.1, 1.0, 2.15646956), (0.1, 0.5, 1.65082238)):
        log_scale = zero + math.log(scale)
        objective = o.CMIM(t)
        assert objective([Z1], mean=mean, log_scale=log_scale).item() == approx(value, 1e-6)
    objective = o.CMIM(0.5)
    objective([Z1], mean=mean, log_scale=zero)
    assert objective.diagnostics["contrastive"].item() == approx(0.18280016)


def test_cmim_constants():
    def contrastive(z, t):
        objective = o.CMIM(t)
        objective([z], mean=z, log_scale=torch.zeros_like(z))
        return objective.diagnostics["contrastive"].item()

    for t in (0.1, 1.0):
        assert contrastive(torch.ones(5, 3, **double), t) == approx(math.log(2))
        assert contrastive(torch.eye(3, **double), t) == approx(math.log1p(math.exp(-1 / t)))
        assert contrastive(rows([1, 0], [-1, 0]), t) == approx(math.log1p(math.exp(-2 / t)))
        assert contrastive(Z1 * rows([2], [3], [0.5]), t) == approx(contrastive(Z1, t))
    assert contrastive(Z1[:1], 0.1) == approx(0, 1e-4)  # nobody to be told apart from


# Hard contrastive, SupCon, tolerance


def test_hard_contrastive_grows_with_what_is_kept():
    losses = [o.HardContrastive(0.5, k)([Z1, Z2]).item() for k in (1, 2, 3, 4)]
    assert losses == sorted(losses)
    with pytest.raises(ValueError, match="keep must be a share"):
        o.HardContrastive(0.5, 0.0)


def test_supcon():
    label = torch.tensor([0, 1, 0])
    assert o.SupCon(0.5)([Z1, Z2], label=label).item() == approx(2.32676622)
    assert o.SupCon(0.5)([Z1, Z2], label=torch.arange(3)).item() == approx(0.96854400)
    assert o.SupCon(0.5)([Z1, Z2], label=torch.full((3,), -1)).item() == approx(0.96854400)
    scaled = o.SupCon(0.5, base_temperature=0.25)([Z1, Z2], label=label).item()
    assert scaled == approx(2 * 2.32676622)


def test_tolerance():
    assert diagnostics.tolerance(Z1, torch.tensor([0, 1, 0])).item() == approx(-0.8)


# AMCL


class Linear(torch.nn.Module):
    """phi(a, b) = (a_0 + b_0) / 2, of the worked example."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, a, b):
        return self.low + (self.high - self.low) * torch.sigmoid((a[..., 0] + b[..., 0]) / 2)


@pytest.mark.parametrize(
    ("negatives", "constant", "adaptive"),
    [("max", -0.00480000, -0.10005079), ("lse", 0.40624399, 0.65381636), ("lse+pos", 0.96854400, 1.11190191)],
)
def test_amcl(negatives, constant, adaptive):
    fixed = o.AMCL(1, 2, negatives, adaptive=False, temperature=0.5)
    assert fixed([Z1, Z2]).item() == approx(constant)
    free = o.AMCL(1, 2, negatives, beta=0.1).double()
    free.nets[0] = Linear(1e-5, 2.0)
    assert free([Z1, Z2]).item() == approx(adaptive)
    torch.testing.assert_close(free.tau(0, Z1, Z2), rows(1.421902, 1.079834, 0.586363), atol=1e-6, rtol=0)


def test_amcl_heads_add_up():
    views = [torch.cat([Z1, Z2], 1), torch.cat([Z2, Z3], 1)]
    objective = o.AMCL(2, 2, "max", adaptive=False, temperature=0.5)
    assert objective(views).item() == approx(-0.16373333)
    one = o.AMCL(1, 3, "lse+pos").double()
    three = o.AMCL(3, 3, "lse+pos").double()
    three.nets.load_state_dict(one.nets.state_dict())
    a, b = draw(7, 3), draw(7, 3, seed=2)
    assert three([a.repeat(1, 3), b.repeat(1, 3)]).item() == approx(3 * one([a, b]).item(), 1e-12)
    with pytest.raises(ValueError, match="width 4 do not divide into 3 heads"):
        three([draw(5, 4), draw(5, 4)])


def test_omega():
    for tau, d, value in (
        (0.5, 2, 1.306853),
        (1, 2, 1),
        (2, 2, 1.193147),
        (0.5, 128, -42.36142),
        (2 / 128, 128, -202.168517),
    ):
        assert omega(rows(tau), d).item() == pytest.approx(value, abs=1e-5)


def test_amcl_barlow():
    objective = o.AMCLBarlow(1, 2, redundancy=0.005, beta=0.1, eps=0)
    c = cross_correlation(A, B, simulate(1, lambda gather: gather(4))[0], 0)
    assert objective.matrix_loss(c, rows([0.5, 0.5], [2, 0.8])).item() == approx(0.61503885)
    plain = o.AMCLBarlow(1, 2, redundancy=0.005, beta=0.0, eps=0)
    assert plain.matrix_loss(c, torch.ones(2, 2, **double)).item() == approx(0.01546858)


def test_amcl_blocks_do_not_change_the_loss(monkeypatch):
    views = [draw(40, 6).requires_grad_(), draw(40, 6, seed=2)]
    results = []
    for numbers in (2**23, 128 * 80 * 7):
        monkeypatch.setattr("manyviews.objectives.amcl.BLOCK_NUMBERS", numbers)
        torch.manual_seed(0)
        loss = o.AMCL(2, 3).double()(views)
        results.append((loss, torch.autograd.grad(loss, views[0])[0]))
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=0)


# Hydra

GATES = rows([0.5, 1], [1, 0.25], [0.8, 0.4])
CLASSES = {"label": torch.tensor([0, 1, 2]), "partner": torch.tensor([1, 2, 0])}


def hydra(**options):
    return o.Hydra(5, 2, scale=2.0, **options).double()


def test_hydra():
    one = {"gate": GATES, **CLASSES}
    assert hydra()([Z1], targets=[Z2], **one).item() == approx(2.38836612)
    assert hydra()([Z2], targets=[Z1], **one).item() == approx(0.42524050)
    assert hydra()([Z1, Z2], **one).item() == approx(1.40680331)
    assert hydra(renormalise=False)([Z1], targets=[Z2], **one).item() == approx(1.41216538)
    for renormalise in (True, False):
        open_gate = {"gate": torch.ones(3, 2, **double), **CLASSES}
        assert hydra(renormalise=renormalise)([Z1], targets=[Z2], **open_gate).item() == approx(1.73053592)
    assert hydra(gated=False)([Z1], targets=[Z2], **CLASSES).item() == approx(1.73053592)


def test_hydra_means():
    q, k = torch.cat([Z1, rows([0, -1])]), torch.cat([Z2, rows([0.28, -0.96])])
    context = {
        "label": torch.tensor([0, 0, 1, 2]), "partner": torch.tensor([1, 2, 0, 0]),
        "gate": torch.cat([GATES, rows([0.3, 0.9])]),
    }  # fmt: skip
    assert hydra()([q], targets=[k], **context).item() == approx(0.82969121)
    assert hydra(per_anchor=True)([q], targets=[k], **context).item() == approx(0.89677461)


def test_hydra_invariances():
    context = {"gate": GATES, **CLASSES}
    loss = hydra()([Z1], targets=[Z2], **context).item()
    wider = {**context, "gate": GATES * rows([2], [0.3], [1.1])}
    assert hydra()([Z1], targets=[Z2], **wider).item() == approx(loss)
    assert abs(hydra(renormalise=False)([Z1], targets=[Z2], **wider).item() - 1.41216538) > 1e-3
    swapped = [z.flip(1) for z in (Z1, Z2)]
    assert hydra()([swapped[0]], targets=[swapped[1]], **{**context, "gate": GATES.flip(1)}).item() == approx(loss)


def test_hydra_reduces_to_infonce_and_to_nothing():
    same = {"label": torch.arange(3), "partner": torch.arange(3), "gate": torch.ones(3, 2, **double)}
    assert hydra()([Z1], targets=[Z2], **same).item() == approx(0.63819488)
    q = Z1.clone().requires_grad_()
    two = {"label": torch.tensor([0, 1, 0]), "partner": torch.tensor([1, 0, 1]), "gate": GATES}
    loss = hydra()([q], targets=[Z2], **two)
    loss.backward()
    assert loss.item() == 0 and q.grad.abs().sum() == 0


def test_hydra_pairs_and_gates():
    label = torch.tensor([0, 1, 2, 2, -1, 4, 1])
    arbitrary = hydra().pair(label)
    assert sorted(arbitrary.tolist()) == sorted(label.tolist()) and arbitrary[4] == -1
    assert torch.equal(hydra(pairing="identical").pair(label), label)
    distinct = hydra(pairing="distinct").pair(label)
    assert (distinct[label >= 0] != label[label >= 0]).all() and distinct[4] == -1
    objective = hydra().eval()
    other = torch.tensor([1, 2, 0, 3, 1, 1, 0])
    known = label.clamp(min=0)
    torch.testing.assert_close(objective.gate(known, other), objective.gate(other, known))


def test_hydra_gate_learns_alone_first():
    objective = hydra(gate_epochs=2)
    views = [draw(8, 2, seed=s).requires_grad_() for s in (1, 2)]
    label = torch.arange(8) % 4
    objective(views, label=label, epoch=1).backward()
    assert views[0].grad.abs().sum() == 0
    assert objective.gate.mlp[2].weight.grad.abs().sum() > 0 and objective.log_scale.grad.abs() > 0
    objective(views, label=label, epoch=2).backward()
    assert views[0].grad.abs().sum() > 0


# Whitening


def test_whitening():
    four = simulate(1, lambda gather: gather(4))[0]
    zca = group_whiten(A, 1, torch.arange(2), four, eps=0)
    expected = rows([0.591752, 1.408248], [1.224745, -1.224745], [-1.408248, -0.591752], [-0.408248, 0.408248])
    torch.testing.assert_close(zca, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(zca.T @ zca / 4, torch.eye(2, **double))
    lower = rows([0.387298, 1.264911], [1.161895, -0.948683], [-1.161895, -0.632456], [-0.387298, 0.316228])
    torch.testing.assert_close(cholesky_whiten(A), lower, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cov(cholesky_whiten(A).T), torch.eye(2, **double))
    assert o.WMSE()([A, B]).item() == approx(0.50375013)
    assert o.WMSE(normalise=False)([A, B]).item() == approx(0.09578646)


def test_group_whitening():
    four = simulate(1, lambda gather: gather(4))[0]
    wide = torch.cat([A, rows([1, 1], [0, -1], [2, 0], [-1, 1])], 1)
    for order, expected in (
        ([2, 0, 3, 1], (0.577350, 1.706344, 0.577350, -0.297304)),
        ([0, 1, 2, 3], (0.591752, 1.408248, 0.502507, 0.946380)),
    ):
        found = group_whiten(wide, 2, torch.tensor(order), four, eps=0)[0]
        torch.testing.assert_close(found, rows(*expected), atol=1e-6, rtol=0)
    one = [group_whiten(wide[:3], 1, torch.randperm(4), LOCAL) for _ in range(2)]
    torch.testing.assert_close(*one)  # one group: the order does not matter
    with pytest.raises(ValueError, match="4 dimensions do not divide into 3 groups"):
        group_whiten(wide, 3, torch.arange(4), four)


def test_the_inverse_root_has_a_gradient_at_equal_eigenvalues():
    eye = torch.eye(3, **double).requires_grad_()
    inverse_root(eye).sum().backward()
    torch.testing.assert_close(eye.grad, torch.full((3, 3), -0.5, **double))
    spread = draw(3, 3)
    spread = (spread @ spread.T + torch.eye(3, **double)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: inverse_root((m + m.T) / 2), spread)


def test_wmse_needs_more_rows_than_dimensions():
    with pytest.raises(ValueError, match="whitens 4 rows of width 6"):
        o.WMSE()([draw(4, 6), draw(4, 6)])


# MEOW


def test_meow_weights():
    for w, value in (
        (rows([0, 2, 1], [2, 0, 2], [1, 2, 0]), 0.20474856),
        (1 - torch.eye(3, **double), -0.43479742),
        (torch.ones(3, 3, **double), 0.63819488),
    ):
        assert weighted(Z1, Z2, w.log(), 0.5, LOCAL).item() == approx(value)
        more = weighted(Z1, Z2, (3 * w).log(), 0.5, LOCAL).item()
        assert more == approx(value + math.log(3))


def test_meow_adds_proto_nce():
    """The values of the authors' code, for clusterings (0, 0, 1) and (0, 1, 0) of view 1."""
    objective = o.MEOW(3, 2, (2, 2), 0.4).double()
    memory, index = objective.memory, torch.arange(3)
    memory.items[0] = Z2
    memory.assigned.copy_(torch.tensor([[0, 0, 1], [0, 1, 0]]))
    means = [torch.stack([Z2[labels == k].mean(0) for k in range(2)]) for labels in memory.assigned]
    memory.centroids.copy_(F.normalize(torch.cat(means), dim=1))
    objective.concentrate()
    assert objective.proto_nce(Z1, memory.of(index), LOCAL).item() == approx(0.8093370266)
    assert objective([Z1, Z2], index=index).item() == approx(0.8093370266 - 0.3911523396)
    angles = rows([0, 10, 40, 170, 200])[0].deg2rad()
    z = torch.stack([angles.cos(), angles.sin()], 1)
    phi = concentrations(z, torch.tensor([0, 0, 0, 1, 1]), 2, 0.4)
    torch.testing.assert_close(phi, rows(0.3877938443, 0.4122061557), atol=1e-9, rtol=0)


# SepCLR


def test_sepclr():
    objective = o.SepCLR(0.5)
    ones = torch.ones(3, **double)
    assert objective.align(Z1, Z2, ones, LOCAL).item() == approx(0.44266667)
    assert objective.uniformity(Z1, LOCAL).item() == approx(-1.58965494)
    both = objective.align(Z1, Z2, ones, LOCAL) + objective.uniformity(Z1, LOCAL) + objective.uniformity(Z2, LOCAL)
    assert both.item() == approx(-2.58668758)
    assert objective.jem(Z1, Z2, LOCAL).item() == approx(-0.98763324)
    assert objective.jem(Z1, 0 * Z1, LOCAL).item() == approx(-0.76499229)


def test_sepclr_without_targets_is_finite_and_the_background_has_no_say_in_uniformity():
    s = [Z1.clone().requires_grad_(), Z2.clone().requires_grad_()]
    loss = o.SepCLR()([Z1, Z2], salient=s, label=torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite() and s[0].grad.isfinite().all()
    free = [Z1.clone().requires_grad_(), Z2.clone().requires_grad_()]
    o.SepCLR(background=0.0)([Z1, Z2], salient=free, label=torch.tensor([0, 1, 1])).backward()
    assert free[0].grad[0].abs().sum() == 0 and free[0].grad[1].abs().sum() > 0


# SupReMix


def test_supremix_hard_positive():
    y = rows(1, 2, 4)
    mixed, there = o.SupReMix.between(y, Z1, y, rows(0, 0, 0), rows(0, 0, 0))
    assert there.tolist() == [False, True, False]
    torch.testing.assert_close(mixed[1], rows(0.894427, 0.447214), atol=1e-6, rtol=0)
    assert (mixed[1] @ Z1[1]).item() == approx(0.89442719)


def test_supremix_without_mixtures_and_weights_is_supcon():
    label = torch.tensor([0, 1, 0])
    plain = o.SupReMix(0.5, mixtures=False, weighted=False)
    assert plain([Z1, Z2], label=label).item() == approx(2.32676622)


# PALM


def test_palm():
    prototypes = rows([1, 0], [0, 1], [-1, 0], [0.6, -0.8])
    objective = o.PALM(2, 2, 2, momentum=1.0, nearest=0, epsilon=0.5).double()
    objective.prototypes.copy_(prototypes)
    label = torch.tensor([0, 1, 0])
    expected = rows([0.967773, 0, 0.032227, 0], [0, 0.734424, 0, 0.265576], [0.021929, 0, 0.978071, 0])
    torch.testing.assert_close(objective._own(Z1, prototypes, label), expected, atol=1e-6, rtol=0)
    loss = objective([Z1], label=label).item()
    assert objective.diagnostics["mle"].item() == approx(1.37855892)
    assert objective.diagnostics["prototype_contrast"].item() == approx(2.79669188)
    assert loss == approx(1.37855892 + 2.79669188)
    one = o.PALM(2, 2, 1, momentum=1.0).double()
    one.prototypes.copy_(prototypes[:2])
    one([Z1], label=label)
    softmax = F.cross_entropy(Z1 @ prototypes[:2].T / 0.1, label).item()
    assert one.diagnostics["mle"].item() == approx(softmax)


# BaCon, CPL


def test_bacon_numbers():
    p = rows([0.7, 0.2, 0.1], [0.6, 0.3, 0.1])
    torch.testing.assert_close(p @ p.T, rows([0.54, 0.49], [0.49, 0.46]))
    objective = o.BaCon(prediction_temperature=1.0)
    objective([Z1[:2], Z2[:2]], label=torch.tensor([-1, -1]), logits=[p.log(), p.log()])
    assert objective.diagnostics["imbalance"].item() == approx(0.24177129)


def test_bacon_weighs_its_branches_as_the_authors_do():
    logits = [rows([2, 0, 1], [0, 1, -1], [0.5, 0, 0]) / 5, rows([1, 1, 0], [-1, 2, 0], [0, 0.5, 1]) / 5]
    loss = o.BaCon()([Z1, Z2], label=torch.tensor([0, 1, -1]), logits=logits)
    assert loss.item() == approx(3.3509465257)


def test_bacon_with_certain_guesses_is_supcon():
    label = torch.tensor([0, 1, 0])
    certain = F.one_hot(label, 2).double()
    soft = o.BaCon(0.5).soft_contrast([Z1, Z2], certain, LOCAL)
    assert soft.item() == approx(2.32676622)
    supervised = o.BaCon(0.5).supervised_contrast([Z1, Z2], label, LOCAL)
    assert supervised.item() == approx(2.32676622)


def test_cpl_pair():
    p = rows([0.7, 0.2, 0.1], [0.6, 0.3, 0.1])
    objective = o.CPL()
    unknown = torch.tensor([-1, -1])
    objective([p.log(), p.log()], features=Z1[:2], label=unknown)
    assert objective.diagnostics["pair"].item() == approx(0.71334989)
    same = torch.tensor([[60.0, 0, 0], [60, 0, 0]])
    objective([same, same], features=Z1[:2], label=unknown)
    assert objective.diagnostics["pair"].item() == approx(0)
    apart = torch.tensor([[90.0, 0, 0], [0, 90, 0]])
    assert objective([apart, apart], features=Z1[:2], label=unknown).isfinite()


def test_cpl_parts_outvote_the_whole():
    z = rows([1, 0], [0.9, 0.1], [0, 1])
    parts = torch.stack([rows([1, 0], [0, 1], [1, 0])] * 3, 1)
    label = torch.tensor([-1, -1, -1])
    three = simulate(1, lambda gather: gather(3))[0]
    assert o.CPL().partners(z, label, None, three)[0] == 1
    assert o.CPL().partners(z, label, parts, three)[0] == 2


# SiMHand


def test_simhand():
    joints = rows([[[0, 0]], [[0.5, 0]]], [[[1, 0]], [[1, 1]]], [[[0, 2]], [[0, 1.5]]])
    assert o.SiMHand(0.5)([Z1, Z2], joints=joints).item() == approx(1.01953001)
    equal = torch.zeros(3, 2, 1, 2, **double)
    assert o.SiMHand(0.5)([Z1, Z2], joints=equal).item() == approx(0.96854400)
    assert o.SiMHand(0.5, "sigmoid", slope=0.0)([Z1, Z2], joints=joints).isfinite()


# Repulsor, MECO


def test_repulsor():
    objective = o.Repulsor(2, 0, 0, weight=1.0)
    assert objective([Z1]).item() == approx(-2.60839157)
    bank = o.Repulsor(2, 0, 2, weight=1.0, distance="cosine").double()
    bank.bank.items.copy_(rows([0, -1], [-0.6, -0.8]))
    alone = torch.stack(
        [z @ q for i, z in enumerate(Z1) for q in [*(Z1[j] for j in range(3) if j != i), *bank.bank.items]]
    )
    assert bank([Z1]).item() == approx((alone / 0.5).exp().mean().log().item())
    torch.testing.assert_close(bank.bank.items, Z1[1:])


def test_meco():
    x = rows(0.5, -1, 2)
    noise, log_q = -((x - 0.3) ** 2) / 2, -(x**2) / 2 - 0.5 * math.log(2 * math.pi)
    ratio = (noise - log_q).exp()
    torch.testing.assert_close(ratio, rows(2.784139, 1.775245, 4.366399), atol=1e-6, rtol=0)
    objective = o.MECO(1.0).double()
    free = noise.clone().requires_grad_()
    loss = objective([torch.zeros(3, 1, **double)], noise=free, log_q=log_q)
    assert objective.log_u.item() == approx(1.09033169)
    (ours,) = torch.autograd.grad(loss, free)
    exact = noise.clone().requires_grad_()
    (expected,) = torch.autograd.grad(((exact - log_q).logsumexp(0) - math.log(3)), exact)
    torch.testing.assert_close(ours, expected)
    shifted = o.MECO(1.0).double()
    data = draw(3, 1)
    objective([data], noise=noise, log_q=log_q)
    shifted([data + 5], noise=noise + 5, log_q=log_q)
    assert shifted.diagnostics["nll"].item() == approx(objective.diagnostics["nll"].item())
    slow = o.MECO(0.1).double()
    slow([data], noise=noise, log_q=log_q)
    assert slow.log_u.item() == approx(1.09033169)  # the first batch is the estimate
    slow([data], noise=noise + 1, log_q=log_q)
    assert slow.log_u.exp().item() == approx((0.9 + 0.1 * math.e) * math.exp(1.09033169), 1e-6)


# BECLR


def test_beclr_without_neighbours_or_spread_is_minus_the_cosine():
    objective = o.BECLR(2, memory=6, clusters=2, neighbours=0, spread=0.0).double()
    assert objective([Z1, Z2], targets=[Z2, Z3]).item() == approx(-0.76320000)
    assert objective.memory.filled() == 1
    counts = objective.cluster.bincount(minlength=2)
    assert counts.sum() == 6 and objective.diagnostics["memory_filled"] == 1


def test_beclr_spreads_projections_of_different_images():
    """The value of the authors' code."""
    objective = o.BECLR(2, memory=60, clusters=2).double()
    loss = objective([Z3, Z1], targets=[Z2, Z1], projections=[Z1, Z2], epoch=0)
    assert loss.item() == approx(-0.8692590856)
    assert objective._spread([Z1, Z2], LOCAL).item() == approx(0.0460758102)


def test_beclr_in_one_cluster_asks_the_whole_memory():
    objective = o.BECLR(2, memory=3, clusters=1, neighbours=1, spread=0.0, from_epoch=0).double()
    objective([Z3], targets=[Z1])
    near, there = objective.nearest(Z2)
    torch.testing.assert_close(near[:, 0], Z1[(Z2 @ Z1.T).argmax(1)])
    assert there.all()


# Where numbers go out of range.


def test_certain_classifiers_have_a_gradient():
    sure = torch.tensor([[300.0, 0, 0]] * 3).requires_grad_()
    other = torch.tensor([[250.0, 0, 0]] * 3).requires_grad_()
    label = torch.tensor([0, -1, -1])
    o.BaCon()([Z1.float(), Z2.float()], label=label, logits=[sure, other]).backward()
    assert sure.grad.isfinite().all()
    sure.grad = None
    o.CPL()([sure, other], features=Z1.float(), label=label).backward()
    assert sure.grad.isfinite().all() and other.grad.isfinite().all()


def test_palm_leaves_out_what_has_no_class():
    torch.manual_seed(0)
    objective = o.PALM(2, 2, 2).double()
    start = objective.prototypes.clone()
    loss = objective([Z1, Z2], label=torch.tensor([0, -1, 7]))
    assert loss.isfinite() and objective.prototypes.isfinite().all()
    assert not torch.equal(objective.prototypes[::2], start[::2])


def test_meow_rows_without_weight_take_no_part():
    a = Z1.clone().requires_grad_()
    w = rows([0, 0, 0], [1, 0, 1], [1, 1, 0])
    loss = weighted(a, Z2, w.log(), 0.5, LOCAL)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all() and a.grad[0].abs().sum() == 0


def test_a_singular_batch_gives_nan_for_the_guard_and_does_not_raise():
    flat = torch.cat([draw(9, 2), torch.zeros(9, 1, **double)], 1)
    assert o.WMSE()([flat, flat]).isnan()
    assert o.WMSE(eps=1e-3)([flat, flat]).isfinite()


# DINO: two images, three prototypes; two large crops of the teacher, these and a small one of the student.
TEACHER = [rows([2, 0, 1], [0, 1, -1]), rows([1, 1, 0], [-1, 2, 0])]
STUDENT = [rows([1, 0, 0], [0, 2, 1]), rows([0, 1, -1], [1, 0, 2]), rows([1, 1, 1], [2, 0, -1])]
CENTRE = rows(0.5, 0, -0.5)


@pytest.mark.parametrize(
    ("centre", "temperatures", "large", "all_crops"),
    [
        (0 * CENTRE, (1, 0.5), 1.32028060, 1.45154755),
        (CENTRE, (1, 0.5), 1.48479317, 1.55955747),
        (CENTRE, (0.1, 0.04), 11.25004743, 10.89967679),
    ],
)
def test_dino(centre, temperatures, large, all_crops):
    for count, value in ((2, large), (3, all_crops)):
        objective = o.DINO(3, *temperatures).double()
        objective.centre.copy_(centre)
        assert objective(STUDENT[:count], targets=TEACHER).item() == approx(value)
        torch.testing.assert_close(objective.centre, 0.9 * centre + 0.1 * rows(0.5, 1, 0))


def test_dino_reads_its_teacher_and_gives_it_no_gradient():
    objective = o.DINO(3, 1, 0.5).double()
    objective.centre.copy_(CENTRE)
    student, teacher = ([view.clone().requires_grad_() for view in side] for side in (STUDENT, TEACHER))
    loss = objective(student, targets=teacher)
    loss.backward()
    expected = {
        0: rows([0.04552192, -0.04552192, 0], [0.01114534, -0.03581331, 0.02466797]),
        2: rows([-0.00414131, 0.00828261, -0.00414131], [0.20518039, -0.20410000, -0.00108039]),
    }
    for crop, slope in expected.items():
        torch.testing.assert_close(student[crop].grad, slope, atol=1e-8, rtol=0)
    assert all(view.grad is None for view in teacher)
    read = objective.diagnostics
    assert read["teacher_entropy"].item() == approx(0.58255233)
    assert read["divergence"].item() == approx(loss.item() - 0.58255233)
    assert read["centre_norm"].item() == approx(math.sqrt(0.5))


def test_dino_does_not_heed_what_is_common_to_all_prototypes_or_all_rows():
    def value(centre, student, teacher):
        objective = o.DINO(3, 1, 0.5).double()
        objective.centre.copy_(centre)
        return objective(student, targets=teacher).item()

    plain, common = value(CENTRE, STUDENT, TEACHER), rows(3, -1, 2)
    assert value(CENTRE, [s + 7 for s in STUDENT], [t - 5 for t in TEACHER]) == approx(plain, 1e-12)
    assert value(CENTRE + common, STUDENT, [t + common for t in TEACHER]) == approx(plain, 1e-12)


def test_the_teacher_of_dino_is_sharpened_along_a_line():
    """From 0.04 to 0.07 in thirty epochs: the first has the one, the thirtieth and all later ones the other."""
    objective = o.DINO(3, 0.1, 0.07, 0.04, 30)
    found = [objective._sharpness(epoch) for epoch in (0, 10, 29, 30, None)]
    assert found == pytest.approx([0.04, 0.04 + 0.03 * 10 / 29, 0.07, 0.07, 0.07])
    once = o.DINO(3, 0.1, 0.07, 0.04, 1)
    assert [once._sharpness(epoch) for epoch in (0, 1)] == [0.04, 0.07]
    with pytest.raises(ValueError, match="warmup_temperature 0.02 is of warmup_epochs, got 0"):
        o.DINO(3, warmup_temperature=0.02)


def test_the_head_of_dino():
    """Prototypes (3, 4), (0, 2), (1, 0) and what is compared with them, (2, 1), count by their directions."""
    prototypes = Prototypes(2, 3).double()
    prototypes.weight.data = rows([3, 4], [0, 2], [1, 0])
    torch.testing.assert_close(prototypes(F.normalize(rows([2, 1]))), rows([0.89442719, 0.44721360, 0.89442719]))
    head = PrototypeHead(6, 5, 8, 4, gain=True).double()
    head.prototypes.gain.data.fill_(2.0)
    logits = head(draw(3, 6))
    logits.square().sum().backward()
    assert logits.abs().max() <= 2 and head.prototypes.gain.grad is not None
    along = (head.prototypes.weight.grad * head.prototypes.weight).sum(1)
    torch.testing.assert_close(along, torch.zeros(5, **double), atol=1e-14, rtol=0)  # across their directions only
