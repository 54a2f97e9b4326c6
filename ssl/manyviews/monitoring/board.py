"""TensorBoard that outlives a full disk."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

logger = logging.getLogger(__name__)


def watch(folder: Path) -> str:
    """The command that shows a folder, by the TensorBoard that is there."""
    beside = Path(sys.executable).with_name("tensorboard")
    program = "tensorboard" if shutil.which("tensorboard") else shlex.quote(str(beside))
    if program != "tensorboard" and not beside.exists():
        program = f"{shlex.quote(sys.executable)} -m tensorboard.main"
    return f"{program} --logdir {shlex.quote(str(folder))}"


class Board(TensorBoardLogger):
    """Readings that cannot be written are lost, the run is not; later ones go to another file of the same folder."""

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, whose calls report an OSError instead of raising it."""
        try:
            return _Surviving(self, super().experiment)
        except OSError as error:
            self.lost(error)
            return _Surviving(self, None)

    def lost(self, error: OSError) -> None:
        """Lets go of a writer whose thread has ended."""
        logger.error("TensorBoard: readings lost (%s)", error)
        self._experiment = None
        self._kwargs.pop("purge_step", None)  # a second time it would take back what this run has written


class _Surviving:
    def __init__(self, board: Board, writer: Any) -> None:
        self._board, self._writer = board, writer

    def __getattr__(self, name: str) -> Any:
        if self._writer is None:
            return lambda *_, **__: None
        method = getattr(self._writer, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except OSError as error:
                self._board.lost(error)
                return None

        return call
