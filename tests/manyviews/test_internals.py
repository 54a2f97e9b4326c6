"""What is touched of torch's and Lightning's insides: in one file, and missed at the start where it is gone."""

import re
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import viewshards
from manyviews import internals

SOURCE = Path(internals.__file__).parent
PRIVATE = re.compile(
    r"\b(?:torch|trainer|strategy|connector|loop|loops?|nn|dist|pl)\._[a-z]\w+|import _[A-Za-z]\w+$"
    r"|\b_(?:\w+_connector|layer_sync|timeout|get_fsdp_state|lazy_init|ddp_params\w*|foreach_\w+|broadcast_sigterm\w*)\b",
    re.M,
)
"""Names that begin with an underscore, of what is torch's or Lightning's; those of `internals.py` whatever owns them."""


def test_only_one_file_touches_them():
    """And one of viewshards, which knows nothing of manyviews."""
    assert PRIVATE.search((SOURCE / "internals.py").read_text())
    others = [path for package in (SOURCE, Path(viewshards.__file__).parent) for path in package.rglob("*.py")]
    assert len(others) > 150
    found = {path.name: set(PRIVATE.findall(path.read_text())) for path in others}
    assert {name: names for name, names in found.items() if names and name != "internals.py"} == {
        "datamodule.py": {"trainer._accelerator_connector"}
    }


@pytest.mark.parametrize("name", ["callbacks", "_signal_connector", "_checkpoint_connector"])
def test_what_a_trainer_lacks_is_told_before_it_trains(name):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    internals.check(trainer)
    delattr(trainer, name)
    with pytest.raises(ValueError, match=f"a trainer has no {name}.*manyviews was made with"):
        internals.check(trainer)


def test_what_torch_lacks_is_told_at_the_import():
    with pytest.raises(ImportError, match=f"torch {re.escape(torch.__version__)} has no _foreach_nothing"):
        internals._of(torch, "_foreach_nothing")


def test_what_a_strategy_lacks_is_told_before_it_trains():
    trainer = pl.Trainer(accelerator="cpu", strategy="ddp", logger=False, enable_checkpointing=False, max_steps=1)
    internals.check(trainer)
    del trainer.strategy._layer_sync
    with pytest.raises(ValueError, match="a trainer has no strategy._layer_sync"):
        internals.check(trainer)


def test_signals_are_left_to_us():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    told = trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor
    internals.leave_signals(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert before == {number: signal.getsignal(number) for number in before}
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor != told
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None
    assert internals.callbacks(trainer) is trainer.callbacks
