"""What makes a run survive and tell the truth about itself: folder, checkpoints, faults, random state."""

from manyviews.runs.checkpoints import Checkpoints
from manyviews.runs.faults import FiniteGuard, Patience, StopOnSignal, Stopped
from manyviews.runs.folder import RunFolder
from manyviews.runs.ledger import Ledger
from manyviews.runs.random import RandomState
from manyviews.runs.sharded import FullySharded
from manyviews.runs.storage import AtomicCheckpointIO, newest_whole

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "FiniteGuard",
    "FullySharded",
    "Ledger",
    "Patience",
    "RandomState",
    "RunFolder",
    "StopOnSignal",
    "Stopped",
    "newest_whole",
]
