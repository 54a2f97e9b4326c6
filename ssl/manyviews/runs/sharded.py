"""The strategy `fsdp2`: weights, gradients and optimiser state cut over all ranks, checkpoints as those of any run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

PRECISIONS = ("32-true", "bf16-mixed")


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks of all nodes; the method cuts itself (`Method.configure_model`).

    A checkpoint is one file, with the optimiser's parameters numbered as every optimiser numbers them, so that it
    resumes under any strategy and number of ranks. Lightning numbers them as the model does, and gives momenta of a
    checkpoint made under DDP to other parameters of the same shape.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Makes one mesh of all ranks.

        Raises:
            ValueError: if the precision is one in which sharded training has not been tried.
        """
        if self.precision_plugin.precision not in PRECISIONS:
            raise ValueError(
                f"fsdp2 goes with trainer.precision {' or '.join(PRECISIONS)}, got {self.precision_plugin.precision}"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, on rank 0; all ranks have to ask."""
        found = getattr(optimizer, "_optimizer", optimizer).state_dict()
        keep = self.global_rank == 0
        state = {i: {name: _joined(value, keep) for name, value in each.items()} for i, each in found["state"].items()}
        return {**found, "state": state} if keep else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Gives each rank its part of the weights and of the optimiser's state; returns the rest."""
        # Mapped, not read: the ranks of a node share its pages. It was verified when it was chosen.
        checkpoint: dict[str, Any] = torch.load(checkpoint_path, mmap=True, map_location="cpu", weights_only=True)
        assert self.model is not None
        own = self.model.state_dict()
        self.model.load_state_dict({k: _cut(v, own.get(k)) for k, v in checkpoint.pop("state_dict").items()})
        for optimizer, saved in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                i: {name: _cut(value, parameters[i]) for name, value in each.items()}
                for i, each in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
        return checkpoint


def register() -> None:
    """Makes `--trainer.strategy fsdp2` known: ours, also where another library has taken the name."""
    about = "weights, gradients and optimiser state cut over all ranks (FSDP2)"
    StrategyRegistry.register("fsdp2", FullySharded, about, override=True)


def _joined(value: Any, keep: bool) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if keep and isinstance(value, Tensor) else value if keep else None


def _cut(value: Any, like: Tensor | None) -> Any:
    """This rank's part of what belongs to a parameter and has its shape."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value
