"""A run's folder: what it is, with what it was made, and that nothing else continues it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from manyviews import foreign
from manyviews.runs.files import masked, write_text
from manyviews.runs.storage import load, newest_whole

logger = logging.getLogger(__name__)

VERSIONS = ("manyviews", "torch", "torchvision", "lightning", "timm", "webdataset", "numpy")
# What may differ between two parts of one run: where it and its data are and how it is watched, not what it computes
# (that the shards are the same ones is checked by their fingerprint).
FREE = {
    "trainer": {
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "logger",
        "callbacks",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
        "default_root_dir",
        "profiler",
        "plugins",
        "max_time",
        "log_every_n_steps",
        "use_distributed_sampler",
        "barebones",
    },
    "data.init_args": {
        "root",
        "workers",
        "timeout",
        "limits",
        "accept_changed_data",
        "cache_dir",
        "cache_gb",
        "max_broken",
    },
}
WATCHING = {"run", "timeout", "startup_timeout", "trust", "monitor", "collapse", "checkpoints", "stop", "finite"}


@dataclass
class RunFolder:
    """`config.yaml` (resolved, runnable), `run.json` (versions, git state), `checkpoints/`, TensorBoard's events.

    Attributes:
        path: the folder.
    """

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def lock(self) -> None:
        """Holds the folder for this process until it ends, however it ends; called again it does nothing.

        Raises:
            ValueError: if another process holds it, naming that one.
        """
        if self._lock is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / "lock", "a+")  # noqa: SIM115  # held as long as the process lives
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which forked loaders would keep
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s: no locks on this file system (%s): start one job in it only", self.path, error)
                return
            lock.seek(0)
            raise ValueError(f"{self.path} is in use by {lock.read().strip()}: give another --run folder") from None
        lock.truncate(0)
        job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        lock.write(f"process {os.getpid()} on {platform.node()}{job}\n")
        lock.flush()
        self._lock = lock

    def abandon(self) -> None:
        """Removes what a run that never started has written."""
        if self._lock is None or self.config_file.exists():
            return
        (self.path / "lock").unlink(missing_ok=True)  # before it is let go, or another job could hold what is removed
        self._lock.close()
        self._lock = None
        for events in self.path.glob(f"events.out.tfevents.*.{os.getpid()}.*"):  # of this process, and empty
            events.unlink()
        (self.path / "hparams.yaml").unlink(missing_ok=True)  # Lightning's logger writes one for every run
        for folder in (self.path / "attempts", self.checkpoints, self.path):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()

    def check(self, config: dict[str, Any]) -> None:
        """Checks that the folder is new or holds this experiment.

        Raises:
            ValueError: if it holds another one, naming what differs.
        """
        written, known = self._written(), None
        if written is None or self._differences(written, config):
            # A file that is gone or was cut reads as another experiment: the newest checkpoint says what this run is.
            known = self._checkpointed()
        if written is None and known is None:
            return  # nothing has been trained here
        if known is not None and not self._differences(known, config):
            logger.warning("%s is damaged; the newest checkpoint says that this is its run", self.config_file)
            return
        different = self._differences(known if written is None and known is not None else written or {}, config)
        if different:
            listed = "\n  ".join(f"{key}: {old!r} there, {new!r} asked for" for key, old, new in different)
            raise ValueError(
                f"{self.path} holds another experiment and is not continued with this one:\n  {listed}.\n"
                "Give another --run folder, or the original values"
            )

    @staticmethod
    def _differences(before: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        return differences(identity(before), identity(config))

    def _written(self) -> dict[str, Any] | None:
        """The configuration in the folder; None if it is not there or cannot be read."""
        try:
            found = foreign.read_yaml(self.config_file)
        except (ValueError, OSError):
            return None
        return found if isinstance(found, dict) else None

    def _checkpointed(self) -> dict[str, Any] | None:
        """The configuration in the newest checkpoint; None without one that can be read."""
        try:
            newest = newest_whole(self.checkpoints)
            found = None if newest is None else foreign.plain(load(newest).get(foreign.CONFIG_KEY), str(newest))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def write(self, config: dict[str, Any], parent: dict[str, Any] | None = None) -> None:
        """Writes down the experiment, and of which run it has its weights, once.

        A run that never started leaves nothing behind.
        """
        if self.config_file.exists() and self.config_file.stat().st_size:
            return
        about = provenance() | ({"parent": parent} if parent else {})
        write_text(self.path / "run.json", json.dumps(about, indent=1) + "\n")
        write_text(self.config_file, yaml.safe_dump(config, sort_keys=False))


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration computes, as one flat dict: without how it is watched and where it runs."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                if not (prefix in FREE and key in FREE[prefix]) and not (not prefix and key in WATCHING):
                    walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[prefix] = value

    walk("", config)
    return json.loads(json.dumps(flat))  # type: ignore[no-any-return]  # tuples and lists alike


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, before, now) where two flat dicts differ."""
    keys = [*before, *(key for key in now if key not in before)]
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def provenance() -> dict[str, Any]:
    """Versions, hardware and git state, to be kept with a run or a number."""
    return {
        "versions": {name: _version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "command": [Path(sys.argv[0]).name, *masked(sys.argv[1:])],  # not where it lies here
        "git": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def hardware() -> str:
    """Processor and cores, and the GPUs if torch sees any."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    text = f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([text, *gpus])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        out = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
