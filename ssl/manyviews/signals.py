"""Signals set a flag and nothing else; training looks at it at batch boundaries. A second one ends the process.

A handler that saves or talks to other ranks runs at whatever line each rank has reached, and deadlocks. This module
needs no torch, so that the entry point can install it first: importing the rest takes seconds in which Slurm's warning
would kill the job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

WARNING = signal.SIGUSR1
"""What `#SBATCH --signal=USR1@120` sends before the time limit."""
ALL = (signal.SIGINT, signal.SIGTERM, WARNING)
TOGETHER = 2.0
"""Seconds in which SIGTERM may come twice and is meant once: `timeout` and Slurm send it to a process and its group."""

received: int | None = None
"""The last signal that came since it was set to None."""
_asked: float | None = None
"""When the last SIGINT or SIGTERM came."""


def listen(*numbers: int) -> dict[int, Any]:
    """Lets these signals set the flag; returns the handlers they had."""
    return {number: signal.signal(number, _note) for number in numbers}


def restore(before: dict[int, Any]) -> None:
    """Gives back the handlers that `listen` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _note(number: int, frame: Any) -> None:
    global received, _asked
    is_again = received is not None and number == signal.SIGINT
    if received is not None and number == signal.SIGTERM and _asked is not None:
        # After a warning alone SIGTERM is Slurm's time limit: half a minute is left to save in.
        is_again = time.monotonic() - _asked > TOGETHER
    if is_again:
        _end(number)
    received = number
    if number != WARNING:
        _asked = time.monotonic()
    os.write(2, b"stopping after this step and saving; a second signal ends at once\n")


def _end(number: int) -> None:
    """Ends now, whatever it waits for, and with it what it started. The checkpoint that is there counts."""
    os.write(2, b"ended at once; the newest checkpoint counts\n")
    for child in _children():
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(128 + number)


def _children() -> list[int]:
    """Processes that this one started: loaders, and ranks of this node."""
    found = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found += [int(pid) for pid in task.read_text().split()]
    return found
