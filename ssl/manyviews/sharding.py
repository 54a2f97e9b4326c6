"""What fully sharded training (FSDP2) means for a module: parameters are DTensors, whole only while they compute.

A rank keeps its part of each parameter, of its gradient and of the optimiser's state. Losses and gradients are those of
DDP. The strategy and its checkpoints are in `manyviews.runs.sharded`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from manyviews.internals import foreach_norm, wake


def shard(method: nn.Module, mesh: DeviceMesh) -> None:
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
def whole(method: nn.Module) -> Iterator[None]:
    """All weights on every rank for a while, so that any part may be called, on any rank: evaluation."""
    sharded = [part for part in method.modules() if isinstance(part, FSDPModule)]
    if isinstance(method, FSDPModule):
        wake(method)
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.reshard()
            part.set_reshard_after_forward(part is not method, recurse=False)


def parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of each tensor: its memory, not a copy. Without sharding: the tensors."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def norms(tensors: Iterable[Tensor]) -> Tensor:
    """(n,) 2-norms of n whole tensors, in float32 or better. Of sharded ones all ranks have to ask."""
    tensors = list(tensors)
    each = foreach_norm(parts(tensors))
    found = torch.stack([norm.to(torch.promote_types(norm.dtype, torch.float32)) for norm in each])
    if isinstance(tensors[0], DTensor):
        squares = found.square()
        dist.all_reduce(squares, group=tensors[0].device_mesh.get_group())
        found = squares.sqrt()
    return found
