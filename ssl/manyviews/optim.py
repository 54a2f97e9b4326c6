"""How methods are trained: optimisers, groups of parameters, schedules, teachers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manyviews.internals import BatchNorm, foreach_add, foreach_add_, foreach_lerp_, foreach_mul, foreach_mul_
from manyviews.sharding import norms, parts

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""Builds an optimiser over parameter groups: `functools.partial(LARS, lr=0.3)`, or a class with arguments in YAML."""


class LARS(Optimizer):
    """SGD with momentum whose step is scaled, tensor by tensor, by |w| / |g| (You et al., 2017; as in SimCLR).

    Groups with `adapt=False` (biases and norms, see `groups_of`) take a plain momentum step.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: added to the gradient before the trust ratio.
        eta: trust coefficient; SimCLR 1e-3, the CIFAR recipes 0.02.
        clip_lr: never let the trust ratio raise a tensor's rate above `lr` (the CIFAR recipes do).
        plain_rate: rate of the plain groups, as a share of `lr` (Barlow Twins: 0.0048 / 0.2).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        clip_lr: bool = False,
        plain_rate: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "clip_lr": clip_lr,
            "plain_rate": plain_rate,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; parameters without a gradient are left alone, momentum included."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            still = norms(grads) == 0 if group["adapt"] else None
            if group["weight_decay"]:
                grads = list(foreach_add(grads, params, alpha=group["weight_decay"]))
            if still is not None:
                ratio = self._trust(norms(params), norms(grads), still, group)
                grads = list(foreach_mul(parts(grads), list(ratio.unbind())))
            buffers = []
            for p in params:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffers.append(state["momentum_buffer"])
            buffers = parts(buffers)
            foreach_mul_(buffers, group["momentum"])
            foreach_add_(buffers, parts(grads))
            rate = group["lr"] * (1.0 if group["adapt"] else group["plain_rate"])
            foreach_add_(parts(params), buffers, alpha=-rate)
        return loss

    @staticmethod
    def _trust(w: Tensor, g: Tensor, still: Tensor, group: dict[str, Any]) -> Tensor:
        # Without a gradient only decay is left, which the ratio would turn into a step of lr * eta whatever its size.
        ratio = torch.where((w > 0) & (g > 0) & ~still, group["eta"] * w / g, torch.ones_like(w))
        if group["clip_lr"]:
            ratio = (ratio / group["lr"]).clamp(max=1.0) if group["lr"] > 0 else ratio
        return ratio


def groups_of(
    module: nn.Module,
    unscheduled: Sequence[str] = (),
    decay_all: bool = False,
    shares: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups of matrices and kernels, and of what neither decays nor is adapted (biases, norms, scalars).

    A module may name more parameters of the second kind in a method `no_weight_decay()`, as timm's models do.

    Args:
        module: what is trained.
        unscheduled: parts of it whose rate does not follow the schedule: their groups have `scheduled` False.
        decay_all: nothing is spared: one group of all that follows the schedule, and one of what does not.
        shares: of the rate that parameters have, by their `id`, where it is not 1: their groups have `share`.
    """
    shares = shares or {}
    spared: set[int] = set()
    for child in module.modules():
        named: Iterable[str] = getattr(child, "no_weight_decay", tuple)()
        own = dict(child.named_parameters())
        spared |= {id(own[name]) for name in named if name in own}
    fixed = {id(p) for name in unscheduled for p in module.get_submodule(name).parameters()}
    kinds: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            plain = not decay_all and (p.ndim <= 1 or id(p) in spared)
            kinds.setdefault((id(p) in fixed, plain, shares.get(id(p), 1.0)), []).append(p)
    groups = []
    for (is_fixed, plain, share), params in sorted(kinds.items(), key=lambda kind: (*kind[0][:2], -kind[0][2])):
        group: dict[str, Any] = {"params": params, "scheduled": not is_fixed}
        groups.append(group | ({"weight_decay": 0.0, "adapt": False} if plain else {}))
        groups[-1] |= {"share": share} if share != 1 else {}
    return groups


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine over the whole run; how the rate grows with the batch; and what decays.

    Attributes:
        warmup_epochs: length of the warm-up. warmup_steps: the same in steps; overrides it.
        final: the last rate, as a share of the peak.
        scaling: `linear`: lr is per 256 images of the global batch; `sqrt`: lr is for 256 and grows with the square
            root; `none`: lr is absolute.
        decay_all: weight decay, and the trust ratio of LARS, also for biases, norms and scalars, as in the code of
            MoCo v1 and v2, SimSiam, SupCon, SwAV and iSogCLR, and of MoCo v3's ViTs. False: they are spared.
    """

    warmup_epochs: float = 10.0
    warmup_steps: int | None = None
    final: float = 0.0
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    decay_all: bool = False

    def peak(self, lr: float, global_batch_size: int) -> float:
        """The rate after the warm-up."""
        if self.scaling == "none":
            return lr
        return lr * math.pow(global_batch_size / 256, 1.0 if self.scaling == "linear" else 0.5)

    def warmup(self, total: int, steps_per_epoch: int | None) -> int:
        """Steps of the warm-up in a run of `total` steps.

        Raises:
            ValueError: if it is given in epochs of unknown length.
        """
        if self.warmup_steps is not None:
            return min(self.warmup_steps, total)
        if steps_per_epoch is not None:
            return min(round(self.warmup_epochs * steps_per_epoch), total)
        if self.warmup_epochs:
            raise ValueError("warmup_epochs needs a data module with steps_per_epoch; give schedule.warmup_steps")
        return 0

    def factor(self, step: int, total: int, steps_per_epoch: int | None) -> float:
        """The rate at a step (0 is the first), as a share of the peak."""
        warmup = self.warmup(total, steps_per_epoch)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        if step < warmup:
            return (step + 1) / warmup
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Training:
    """How a method is trained. Parts are named as in the method: `backbone`, `backbone.model.patch_embed`.

    Attributes:
        optimizer: builds the optimiser; its lr is scaled by `schedule`.
        schedule: warm-up, cosine, scaling rule, what decays.
        grad_cache: views at a time that an encoder sees; 0: the whole batch at once. The gradient is the same.
        views_together: views of one size go through backbone and heads together, which is faster and gives BatchNorm
            the statistics of all (the code of SimCLR, SwAV, MV-DHEL, SupCon, iSogCLR, BECLR). False: one after
            another, BatchNorm seeing one view at a time (the code of BYOL, SimSiam, MoCo v3, Barlow Twins, VICReg,
            SogCLR, Hydra, AMCL, and solo-learn's of every method). None: as the method says.
        locked: parts that stay as they are, such as [backbone] (LiT) or [text_backbone.model.transformer]: no gradient,
            eval mode, out of the optimiser. None: as the method says.
        frozen: parts that make no step in the first so many epochs, such as {projector.prototypes: 1}.
        rates: of parts that have a share of the rate, such as {backbone.model.patch_embed: 0.2}; of parts inside each
            other the product.
        layer_decay: a layer of the backbone has this share of the rate of the next; what comes after its blocks has all
            of it (as in BEiT, MAE, DINOv2).
        final_weight_decay: at the end of the run, reached along a half cosine from the optimiser's own (DINO: 0.04 to
            0.4); None: it stays.
        clip: of each tensor's gradient on its own the length is kept below this (DINO: 3); None: it is not. That of all
            together is `trainer.gradient_clip_val`.
    """

    optimizer: OptimizerFactory
    schedule: Schedule
    grad_cache: int = 0
    views_together: bool | None = None
    locked: Sequence[str] | None = None
    frozen: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    final_weight_decay: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, value, is_right, expected in (
            ("grad_cache", self.grad_cache, self.grad_cache >= 0, "0 or more"),
            ("final_weight_decay", self.final_weight_decay, (self.final_weight_decay or 0) >= 0, "0 or more"),
            ("clip", self.clip, self.clip is None or self.clip > 0, "more than 0"),
            ("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "a share, in (0, 1]"),
            *((f"frozen.{part}", epochs, epochs >= 1, "1 or more epochs") for part, epochs in self.frozen.items()),
            *((f"rates.{part}", share, share > 0, "a share, more than 0") for part, share in self.rates.items()),
        ):
            if not is_right:
                raise ValueError(f"training.{name}: expected {expected}, got {value}")

    @torch.no_grad()
    def clipped(self, parameters: Iterable[nn.Parameter]) -> None:
        """Shortens the gradient of each tensor that is longer than `clip`."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.clip is not None and grads:
            factors = (self.clip / (norms(grads) + 1e-6)).clamp(max=1.0)
            foreach_mul_(parts(grads), list(factors.unbind()))

    def decay(self, optimizer: Optimizer, step: int, total: int) -> None:
        """Sets the weight decay of a step of the run; what is spared it stays spared."""
        for group in optimizer.param_groups if self.final_weight_decay is not None else ():
            first = group.setdefault("first_weight_decay", group["weight_decay"])
            if first:
                group["weight_decay"] = Ramp(first, self.final_weight_decay).at(step, total)

    def shares(self, method: nn.Module, backbone: nn.Module) -> dict[int, float]:
        """The share of the rate of every parameter that has not all of it, by `id`.

        Raises:
            ValueError: if layers decay, and the backbone does not say which it has.
        """
        found: dict[int, float] = {}
        for part, share in self.rates.items():
            for p in method.get_submodule(part).parameters():
                found[id(p)] = found.get(id(p), 1.0) * share
        if self.layer_decay == 1:
            return found
        told = getattr(backbone, "layers", None)  # by many a user's own class a list of modules
        layers: dict[str, int] = told() if callable(told) and not isinstance(told, nn.Module) else {}
        if not layers:
            raise ValueError(
                f"training.layer_decay: {type(backbone).__name__} does not say which layers it has: give training.rates"
            )
        own = dict(backbone.named_parameters())
        for name, layer in layers.items():
            share = self.layer_decay ** (max(layers.values()) + 1 - layer)
            found[id(own[name])] = found.get(id(own[name]), 1.0) * share
        return found


@dataclass(frozen=True)
class Ramp:
    """A value over the run.

    Attributes:
        start: at the first step. end: at the last, reached along a half cosine (BYOL, MoCo v3); None: it stays.
    """

    start: float
    end: float | None = None

    def at(self, step: int, total: int) -> float:
        """The value at a step of so many."""
        if self.end is None:
            return self.start
        return self.end - (self.end - self.start) * (math.cos(math.pi * min(step, total) / total) + 1) / 2


class Teacher(nn.Module):
    """A copy of parts of a method, under the same names, whose parameters follow the method's; buffers are copied.

    The method moves it after every step that was made. It takes no gradient. While the method trains, its BatchNorms
    take the statistics of the batch, as in the code of MoCo, BYOL and MoCo v3; everything else is in eval mode: a
    teacher drops no units and no paths. As a child of a method it is in the checkpoint.

    Args:
        parts: children of the method by name; the copies start equal to them.
        momentum: share of itself that it keeps in a step, in [0, 1].
    """

    def __init__(self, parts: Mapping[str, nn.Module], momentum: Ramp) -> None:
        super().__init__()
        for value in (momentum.start, momentum.end):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"momentum must be in [0, 1], got {value}")
        self.momentum = momentum
        for name, part in copy.deepcopy(dict(parts)).items():
            self.add_module(name, part.requires_grad_(False))

    def train(self, mode: bool = True) -> Teacher:
        """Training mode for BatchNorm only."""
        super().train(mode)
        for part in self.modules():
            part.training = mode and isinstance(part, BatchNorm)
        return self

    @torch.no_grad()
    def follow(self, method: nn.Module, step: int, total: int) -> None:
        """theta <- momentum * theta + (1 - momentum) * the method's, in a few launches for all tensors."""
        followed = nn.ModuleList(method.get_submodule(name) for name, _ in self.named_children())
        momentum = self.momentum.at(step, total)
        foreach_lerp_(parts(self.parameters()), parts(followed.parameters()), 1 - momentum)
        for buffer, other in zip(self.buffers(), followed.buffers(), strict=True):
            buffer.copy_(other)
