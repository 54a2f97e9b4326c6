"""LARS, decay groups, schedules, teachers."""

import math

import pytest
import torch
from torch import nn

from manyviews.optim import LARS, Ramp, Schedule, Teacher, groups_of


def lars_reference(w, grads, lr, momentum, decay, eta, adapt, clip):
    """One tensor, step by step, in plain arithmetic."""
    buffer = torch.zeros_like(w)
    for g in grads:
        g = g + decay * w
        if adapt and w.norm() > 0 and g.norm() > 0:
            trust = eta * w.norm() / g.norm()
            g = g * (min(trust / lr, torch.tensor(1.0)) if clip else trust)
        buffer = momentum * buffer + g
        w = w - lr * buffer
    return w


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_lars_equals_its_formula(adapt, clip):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=generator), torch.randn(5, 2, generator=generator) * 100]
    grads = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(4)]
    params = [nn.Parameter(w.clone()) for w in start]
    optimizer = LARS([{"params": params, "adapt": adapt}], 0.3, 0.9, 1e-2, eta=0.02, clip_lr=clip)
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for k, p in enumerate(params):
        expected = lars_reference(start[k], [step[k] for step in grads], 0.3, 0.9, 1e-2, 0.02, adapt, clip)
        torch.testing.assert_close(p.detach(), expected)


def test_lars_leaves_parameters_without_gradient_alone_and_resumes():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([p, q], lr=0.1, weight_decay=0.1)
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(q, torch.ones(2, 2)) and not torch.equal(p, torch.ones(2, 2))
    other = LARS([p, q], lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.1 and torch.equal(
        other.state[p]["momentum_buffer"], optimizer.state[p]["momentum_buffer"]
    )


def test_lars_direction_ignores_the_gradients_scale():
    steps = []
    for scale in (1.0, 1000.0):
        p = nn.Parameter(torch.arange(1.0, 5.0).view(2, 2))
        p.grad = torch.ones(2, 2) * scale
        LARS([p], lr=0.1).step()
        steps.append(p.detach())
    torch.testing.assert_close(*steps)


def test_lars_without_a_gradient_takes_the_decay_only():
    """Not a step of lr * eta, which the trust ratio would make of a decay of any size."""
    p = nn.Parameter(torch.ones(4, 4))
    p.grad = torch.zeros(4, 4)
    LARS([p], lr=0.5, weight_decay=1e-6, eta=1e-3).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 4), 1 - 0.5e-6), atol=1e-8, rtol=0)


def test_lars_has_its_own_rate_for_plain_groups():
    matrix, bias = (nn.Parameter(torch.ones(3)) for _ in range(2))
    matrix.grad = bias.grad = torch.ones(3)
    LARS([{"params": [matrix], "adapt": False}, {"params": [bias], "adapt": False, "plain_rate": 0.1}], lr=0.5).step()
    assert matrix[0].item() == 0.5 and bias[0].item() == pytest.approx(0.95)


def test_groups_spare_biases_norms_and_what_a_module_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 4, 8))
            self.linear = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.frozen = nn.Linear(8, 8).requires_grad_(False)

        def no_weight_decay(self):
            return {"position"}

    net = Net()
    decayed, spared = groups_of(net)
    assert [id(p) for p in decayed["params"]] == [id(net.linear.weight)]
    assert {id(p) for p in spared["params"]} == {id(p) for p in (net.position, net.linear.bias, *net.norm.parameters())}
    assert spared["weight_decay"] == 0 and spared["adapt"] is False
    assert [group["scheduled"] for group in groups_of(net, ["norm"])] == [True, True, False]


def test_on_request_everything_decays():
    """Two steps of SGD 0.05, momentum 0.9, decay 1e-4 on a norm's weight 1 and bias 0.5 under gradients 0.2 and -0.1."""
    expected = {True: (0.970985550025, 0.5144927250125), False: (0.971, 0.5145)}
    for everything, (weight, bias) in expected.items():
        norm = torch.nn.LayerNorm(1).double()
        torch.nn.init.constant_(norm.bias, 0.5)
        groups = groups_of(norm, decay_all=everything)
        assert len(groups) == 1 and groups[0].get("adapt", True) == everything
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-4)
        for _ in range(2):
            norm.weight.grad, norm.bias.grad = (torch.tensor([g], dtype=torch.float64) for g in (0.2, -0.1))
            optimizer.step()
        assert (norm.weight.item(), norm.bias.item()) == pytest.approx((weight, bias), abs=1e-12)


def test_schedule():
    schedule = Schedule(warmup_epochs=2, final=0.1)
    factors = [schedule.factor(step, 100, 5) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[99] == pytest.approx(0.1, abs=1e-3) and factors == sorted(factors[:10]) + sorted(
        factors[10:], reverse=True
    )
    assert schedule.peak(0.3, 1024) == pytest.approx(1.2)
    assert Schedule(scaling="sqrt").peak(1.2, 1024) == pytest.approx(2.4)
    assert Schedule(scaling="none").peak(0.3, 1024) == 0.3
    assert Schedule(warmup_steps=7).factor(6, 100, None) == 1
    with pytest.raises(ValueError, match="warmup_steps"):
        schedule.factor(0, 100, None)


def test_a_teacher_follows_its_formula_and_is_in_the_state():
    student = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "other": nn.Linear(2, 2)})
    teacher = Teacher({"body": student["body"]}, Ramp(0.8, 1.0))
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    student["body"](torch.randn(8, 3))
    teacher.follow(student, 5, 10)
    for old, new, theirs in zip(before, teacher.parameters(), student["body"].parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * theirs)
        assert not new.requires_grad
    assert torch.equal(teacher.body[1].running_mean, student["body"][1].running_mean)
    assert "body.0.weight" in teacher.state_dict()
    for momentum in (Ramp(1.1), Ramp(0.9, -0.1)):
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
            Teacher({}, momentum)


def test_a_ramp():
    assert (
        Ramp(0.99, 1.0).at(0, 10) == pytest.approx(0.99)
        and Ramp(0.99, 1.0).at(10, 10) == Ramp(0.99, 1.0).at(11, 10) == 1
    )
    assert Ramp(0.99, 1.0).at(5, 10) == pytest.approx(1 - 0.01 * (math.cos(math.pi / 2) + 1) / 2)
    assert Ramp(0.3).at(7, 10) == 0.3
