"""`manyviews ...` in processes of their own.

Each is forked from one process of a test worker, which has imported everything and done nothing: importing takes ten times as
long as most of these runs. What is started by others (ranks, Slurm's jobs) is the program itself, see `command`.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["manyviews.cli.fit", "manyviews.cli.report", "manyviews.cli.joint"])
ROOT = Path(__file__).parents[1]


def command(*arguments: object) -> list[str]:
    """The console command, by the interpreter of the tests."""
    script = Path(sys.executable).with_name("manyviews")  # a file, which Lightning can start once more for each rank
    return [sys.executable, str(script), *map(str, arguments)]


def environment() -> dict[str, str]:
    """With the packages and the tests' own classes."""
    paths = [ROOT, ROOT / "ssl", ROOT / "datamodules"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


class Started:
    """A command that runs. `group`: in a session of its own, so that signals can go to all of its processes."""

    def __init__(self, *arguments: object, cwd: Path | None = None, group: bool = False) -> None:
        self.arguments, self.group = command(*arguments)[1:], group
        self.folder = Path(tempfile.mkdtemp())
        self.said = [self.folder / name for name in ("stdout", "stderr")]
        start_method = multiprocessing.get_start_method()
        options = self.arguments, cwd or Path.cwd(), environment(), self.said, group, start_method
        self.process = FORKS.Process(target=_main, args=options)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def await_(self, condition: Callable[[], object], seconds: float = 200) -> None:
        """Until it holds; an error if the command ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive() or time.monotonic() > deadline:
                self.send(signal.SIGKILL)  # or pytest would wait for it
                raise AssertionError(self.end().stderr)
            time.sleep(0.005)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if self.group else os.kill(self.pid, number)

    def end(self, seconds: float = 300) -> subprocess.CompletedProcess:
        """Waits for its end."""
        self.process.join(seconds)
        if late := self.process.is_alive():
            self.send(signal.SIGKILL)
            self.process.join()
        out, err = (path.read_text() for path in self.said)
        shutil.rmtree(self.folder)
        assert not late, f"{self.arguments} runs for more than {seconds} s\n{err}"
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, err)


def program(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The same by an interpreter of its own: for what must not depend on what forks share, such as hashes of texts."""
    return subprocess.run(command(*arguments), env=environment(), cwd=cwd, capture_output=True, text=True, timeout=300)


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Runs `manyviews ...` to its end."""
    return Started(*arguments, cwd=cwd).end()


def members(session: int) -> list[str]:
    """Processes of a session that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def gone(session: int, seconds: float = 60) -> bool:
    """Whether all of them end in time."""
    deadline = time.monotonic() + seconds
    while (left := members(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


def _main(
    argv: list[str], cwd: Path, environ: dict[str, str], said: list[Path], group: bool, start_method: str
) -> None:
    """What a console script does, in a fork."""
    if group:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))
    multiprocessing.set_start_method(start_method, force=True)  # as in a program of its own, not as in this fork
    sys.argv = argv
    sys.modules["__main__"].__spec__ = None  # Lightning starts other ranks by argv, not by the name of a module
    from manyviews import cli

    assert Path(cli.__file__).is_relative_to(ROOT), f"pip install -e {ROOT}: these tests are not for {cli.__file__}"
    sys.exit(cli.main())
