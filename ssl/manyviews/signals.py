"""Signals set a flag and nothing else; training looks at it at batch boundaries.

A handler that saves or talks to other ranks runs at whatever line each rank has reached, and deadlocks. This module
needs no torch, so that the entry point can install it first: importing the rest takes seconds in which Slurm's warning
would kill the job.
"""

from __future__ import annotations

import os
import signal
from typing import Any

WARNING = signal.SIGUSR1
"""What `#SBATCH --signal=USR1@120` sends before the time limit."""
ALL = (signal.SIGINT, signal.SIGTERM, WARNING)

received: int | None = None
"""The last signal that came since it was set to None."""


def listen(*numbers: int) -> dict[int, Any]:
    """Lets these signals set the flag; returns the handlers they had."""
    return {number: signal.signal(number, _note) for number in numbers}


def restore(before: dict[int, Any]) -> None:
    """Gives back the handlers that `listen` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _note(number: int, frame: Any) -> None:
    global received
    received = number
    again = b"; once more to break off at once" if number == signal.SIGINT else b""
    os.write(2, b"stopping after this step and saving" + again + b"\n")
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)
