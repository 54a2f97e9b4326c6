"""What is touched of torch's and Lightning's insides: in one file, and missed at the start where it is gone."""

import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from manyviews import internals

SOURCE = Path(internals.__file__).parent
PRIVATE = re.compile(r"\b(?:torch|trainer|strategy|connector|loop)\._[a-z]\w+|import _[A-Za-z]\w+$", re.M)


def test_only_one_file_touches_them():
    assert PRIVATE.search((SOURCE / "internals.py").read_text())
    others = [path for path in SOURCE.rglob("*.py") if path.name != "internals.py"]
    assert len(others) > 100
    assert [str(path) for path in others if PRIVATE.search(path.read_text())] == []


@pytest.mark.parametrize("name", ["callbacks", "_signal_connector", "_checkpoint_connector"])
def test_what_a_trainer_lacks_is_told_before_it_trains(name):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    internals.check(trainer)
    delattr(trainer, name)
    with pytest.raises(ValueError, match=f"a trainer has no {name}.*manyviews was made with"):
        internals.check(trainer)


def test_what_torch_lacks_is_told_at_the_import():
    with pytest.raises(ImportError, match=f"torch {re.escape(torch.__version__)} has no _foreach_nothing"):
        internals._of_torch("_foreach_nothing")


def test_signals_are_left_to_us():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    internals.leave_signals(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None
    assert internals.callbacks(trainer) is trainer.callbacks
