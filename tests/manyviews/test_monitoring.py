"""The collapse alarm, and the bookkeeping of readings."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from manyviews.backbones import Encoding
from manyviews.monitoring import CollapseAlarm, Monitor
from manyviews.objectives import Objective
from tests.manyviews.test_methods import Batches, fit, simclr
from tests.recipe import Backbone

LOOKS = {"every_n_steps": 2, "warmup_steps": 4, "patience": 2}


class Attract(Objective):
    """Only alignment: nothing keeps the embeddings apart, so they collapse."""

    def loss(self, views, rows, **_):
        return rows.mean(1 - nn.functional.cosine_similarity(*views)) * 10


def collapsing():
    method = simclr()
    method.objective = Attract()
    method.projector = nn.Linear(32, 16)
    return method


class OneDirection(nn.Module):
    """Features that differ along a single direction: dimensional collapse."""

    width = 32

    def __init__(self):
        super().__init__()
        self.inner = Backbone(dropout=0.0)
        self.direction = nn.Parameter(torch.randn(32))

    def forward(self, images):
        amount = self.inner(images).pooled[:, :1]
        return Encoding(amount * self.direction)


def test_a_collapsing_run_trips_it(caplog):
    alarm = CollapseAlarm(**LOOKS, min_spread=0.2)
    fit(collapsing(), 60, [alarm])
    assert alarm.alarms >= 1
    assert "COLLAPSE. spread 0." in caplog.text and "2 looks in a row" in caplog.text


def test_dimensional_collapse_trips_it():
    alarm = CollapseAlarm(**LOOKS)
    method = simclr(backbone=OneDirection())
    method.projector = nn.Identity()
    fit(method, 12, [alarm])
    assert alarm.alarms >= 1


def test_a_healthy_run_does_not(caplog):
    alarm = CollapseAlarm(**LOOKS)
    fit(simclr(), 60, [alarm])
    assert alarm.alarms == 0 and "COLLAPSE" not in caplog.text


def test_it_stops_the_run_on_demand():
    with pytest.raises(ValueError, match=r"COLLAPSE.*Stopped \(collapse.stop\)"):
        fit(collapsing(), 60, [CollapseAlarm(**LOOKS, min_spread=0.2, stop=True)])


def test_readings_not_yet_written_are_in_the_state():
    class At14(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 14:
                states.append(copy.deepcopy(monitor.state_dict()))

    monitor, states = Monitor(every_n_steps=10, pictures_every_n_steps=0), []
    fit(simclr(), 100, [monitor, At14()])
    (state,) = states
    assert len(state["buffer"]["train/loss"]) == 4  # steps 11 to 14
    assert not monitor.state_dict()["buffer"]  # the last step is read
    other = Monitor()
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_readings_show_replaced_samples():
    class Replacing(Batches):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "replaced": ["x"] * (i == 1)}

    monitor = Monitor(every_n_steps=100)
    fit(simclr(), 4, [monitor], batches=Replacing())
    assert monitor.state_dict()["replaced"] == 1
