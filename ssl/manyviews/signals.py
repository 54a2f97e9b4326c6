"""Signals set a flag and nothing else; training looks at it at batch boundaries. A second one ends the process.

A handler that saves or talks to other ranks runs at whatever line each rank has reached, and deadlocks. This module
needs no torch, so that the entry point can install it first: importing the rest takes seconds in which Slurm's warning
would kill the job.

Python runs handlers in the main thread, which may wait in a collective for another rank. So that a second signal ends
the process there too, a thread counts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
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
_came: dict[int, float] = {}
"""When signals came that nobody has answered yet."""
_listening: set[int] = set()
_counter: threading.Thread | None = None


def listen(*numbers: int) -> dict[int, Any]:
    """Lets these signals set the flag; returns the handlers they had."""
    global _counter
    if received is None:
        _came.clear()
    _listening.update(numbers)
    if _counter is None:
        ends = os.pipe()
        for end in ends:
            os.set_blocking(end, end == ends[0])
        signal.set_wakeup_fd(ends[1], warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)
        _counter = threading.Thread(target=_count, args=(ends[0],), daemon=True)
        _counter.start()
    return {number: signal.signal(number, _note) for number in numbers}


def restore(before: dict[int, Any]) -> None:
    """Gives back the handlers that `listen` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)
        if handler is not _note:
            _listening.discard(number)


def _note(number: int, frame: Any) -> None:
    global received
    received = number
    os.write(2, b"stopping after this step and saving; a second signal ends at once\n")


def _count(pipe: int) -> None:
    """Reads the number of every signal as it comes, whatever the main thread does."""
    while number := os.read(pipe, 1):
        _counted(number[0])


def _counted(number: int) -> None:
    if number not in _listening:
        return
    now = time.monotonic()
    # After a warning alone SIGTERM is Slurm's time limit: half a minute is left to save in.
    asked = max((when for other, when in _came.items() if other != WARNING), default=None)
    if number == signal.SIGINT and _came:
        _end(number)
    if number == signal.SIGTERM and asked is not None and now - asked > TOGETHER:
        _end(number)
    _came[number] = now


def _forget() -> None:
    """In a forked process, whose signals are its own: the pipe is the parent's."""
    global _counter
    _counter = None
    _listening.clear()
    with contextlib.suppress(ValueError):  # not from the main thread
        signal.set_wakeup_fd(-1)


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
