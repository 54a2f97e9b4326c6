"""Real shards for the whole suite: scikit-learn's digits, small enough to pack in a second."""

import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

from viewshards.encoding import Encoding
from viewshards.pack import pack
from viewshards.sources.bundled import Sklearn
from viewshards.sources.clips import frames_of
from viewshards.sources.reader import Reader

QUIET = Console(quiet=True)

torch.set_num_threads(1)  # the models are tiny, and pytest's workers would fight over the cores
os.environ["OMP_NUM_THREADS"] = "1"  # of every process that is started from here


def packable(path: Path, **options: object) -> tuple[str, bytes]:
    """Extension and contents of a file as a shard holds it."""
    return Reader(**options)(path, frames_of(path)[0] if path.is_dir() else ())[:2]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """1,797 digits of 8x8 in uneven shards of 150: train 1,437, val 360."""
    out = tmp_path_factory.mktemp("digits")
    pack(Sklearn("digits"), out, Encoding(), shard_samples=150, workers=2, console=QUIET)
    return out


def pytest_collection_modifyitems(items):
    """Long tests first, so that at the end no worker is left alone with them; before all those that wait for Slurm."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, "test_slurm" not in item.nodeid))
