"""All that this package touches of torch's and Lightning's insides, and of what they do not declare.

Another version of theirs may lack or change any of it: what torch has is looked for when this is imported, what a
trainer has by `check` before it trains. Made with torch 2.11 to 2.14 and Lightning 2.6.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:  # objectives do without Lightning
    import lightning.pytorch as pl

MADE_FOR = "manyviews was made with torch 2.11 to 2.14 and lightning 2.6: install one of these"
TRAINER = (
    "callbacks", "fast_dev_run", "_signal_connector.register_signal_handlers", "_checkpoint_connector.dump_checkpoint",
    "fit_loop.epoch_loop._broadcast_sigterm_tensor",
)  # fmt: skip
"""What is touched of a trainer."""


BatchNorm = _BatchNorm
"""Any layer that normalises by statistics of the batch."""


def _of(owner: Any, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] | None = getattr(owner, name, None)
    if found is None:
        raise ImportError(f"torch {torch.__version__} has no {name}; {MADE_FOR}")
    return found


foreach_add, foreach_add_ = _of(torch, "_foreach_add"), _of(torch, "_foreach_add_")
foreach_mul, foreach_mul_ = _of(torch, "_foreach_mul"), _of(torch, "_foreach_mul_")
foreach_lerp_, foreach_norm = _of(torch, "_foreach_lerp_"), _of(torch, "_foreach_norm")
foreach_copy_ = _of(torch, "_foreach_copy_")
"""One launch for many tensors, as torch's own optimisers do it."""

ignored_by_ddp = _of(DistributedDataParallel, "_set_params_and_buffers_to_ignore_for_model")
"""`(module, names)`: parameters and buffers that DDP is not to send around."""
_state_of_sharded = _of(FSDPModule, "_get_fsdp_state")


def check(trainer: pl.Trainer) -> None:
    """Looks for what is touched of a trainer.

    Raises:
        ValueError: if it is not there.
    """
    from lightning.pytorch.strategies import ParallelStrategy  # objectives do without Lightning

    parallel = ("strategy._layer_sync",) if isinstance(trainer.strategy, ParallelStrategy) else ()
    for path in (*TRAINER, *parallel):
        found: Any = trainer
        for name in path.split("."):
            if not hasattr(found, name):
                raise ValueError(f"lightning {version('lightning')}: a trainer has no {path}; {MADE_FOR}")
            found = getattr(found, name)


def callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """The callbacks of a trainer, in their order; the list itself."""
    found: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def is_dry(trainer: pl.Trainer) -> bool:
    """Whether `trainer.fast_dev_run` was asked for."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def leave_signals(trainer: pl.Trainer) -> None:
    """Keeps Lightning from handling signals: its handlers call collectives, and hang.

    Nor does it broadcast each step to tell of a SIGTERM, which waits for the device.
    """
    epochs = trainer.fit_loop.epoch_loop
    for name, owner in {
        "register_signal_handlers": trainer._signal_connector, "_broadcast_sigterm_tensor": epochs,
    }.items():  # fmt: skip
        setattr(owner, name, lambda: None)


def state_of(trainer: pl.Trainer) -> dict[str, Any]:
    """All that a checkpoint holds."""
    return trainer._checkpoint_connector.dump_checkpoint(False)


def set_timeout(trainer: pl.Trainer, seconds: float) -> None:
    """How long ranks wait for each other when the process group is made."""
    if not hasattr(trainer.strategy, "_timeout"):
        name = type(trainer.strategy).__name__
        raise ValueError(f"lightning {version('lightning')}: {name} has no timeout; {MADE_FOR}")
    trainer.strategy._timeout = timedelta(seconds=seconds)


def synchronise(trainer: pl.Trainer, module: nn.Module) -> None:
    """What `trainer.sync_batchnorm` asks for, which Lightning leaves out where a method cuts itself."""
    sync = getattr(trainer.strategy, "_layer_sync", None)
    if sync is not None:  # it replaces modules
        sync.apply(module)


def wake(module: FSDPModule) -> None:
    """Makes a sharded module the root, or the first of its blocks that is called takes itself for it."""
    _state_of_sharded(module)._lazy_init()
