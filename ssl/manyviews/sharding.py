"""Fully sharded training: each rank keeps its part of the weights, of their gradients and of the optimiser's state.

PyTorch's FSDP2: parameters are DTensors, cut along their first dimension, whole only while their block computes. Losses
and gradients are those of DDP. Chosen by `--trainer.strategy fsdp2`; checkpoints are those of any other run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks, with checkpoints in one file."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Cuts over all ranks of all nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Lightning numbers the optimiser's parameters as the model does when it saves and loads, every other optimiser as
    # its groups do: momenta of a checkpoint made under DDP would go to other parameters of the same shape.

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state as any optimiser gives it, on rank 0; all ranks have to ask."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        found: dict[str, Any] = get_optimizer_state_dict(self._module, optimizer, options=WHOLE)
        if not found:
            return found
        number = {name: i for i, name in enumerate(self._names(optimizer))}
        groups = [
            {**group, "params": sorted(number[name] for name in group["params"])} for group in found["param_groups"]
        ]
        return {"state": {number[name]: state for name, state in found["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Gives each rank its part of the weights and of the optimiser's state; returns the rest."""
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        set_model_state_dict(self._module, checkpoint.pop("state_dict"), options=WHOLE)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=True):
            names = self._names(optimizer)
            state = {names[i]: value for i, value in saved["state"].items()}
            groups = [{**group, "params": [names[i] for i in group["params"]]} for group in saved["param_groups"]]
            set_optimizer_state_dict(self._module, optimizer, {"state": state, "param_groups": groups}, options=WHOLE)
        return checkpoint

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _names(self, optimizer: Optimizer) -> list[str]:
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


StrategyRegistry.register("fsdp2", FullySharded, "Weights, gradients and optimiser state cut over all ranks (FSDP2)")


def shard(method: pl.LightningModule, mesh: DeviceMesh) -> None:
    """Cuts a method's parameters over the ranks of a mesh, block by block, the rest as one."""
    for parameter in method.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 refuses channels_last
    for name, part in method.named_children():
        if name != "objective":  # its parts are not called as modules
            for block in reversed(list(_blocks(part))):
                fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "training_step")


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is repeated: those of one class in a list, if made of several modules."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            children = [child for child in parent.children() if next(child.children(), None) is not None]
            often = Counter(type(child) for child in children)
            yield from (child for child in children if often[type(child)] > 1)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """All weights on every rank for a while, so that any part may be called, on any rank: evaluation."""
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.reshard()
            part.set_reshard_after_forward(part is not module, recurse=False)


def parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of each tensor: its memory, not a copy. Without sharding: the tensors."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def norms(tensors: Iterable[Tensor]) -> Tensor:
    """(n,) 2-norms of n whole tensors. Of sharded ones all ranks have to ask."""
    tensors = list(tensors)
    found = torch.stack(torch._foreach_norm(parts(tensors)))
    if isinstance(tensors[0], DTensor):
        squares = found.square()
        dist.all_reduce(squares, group=tensors[0].device_mesh.get_group())
        found = squares.sqrt()
    return found
