"""`manyviews doctor`: what would break, seen before a long job is queued. Run it inside an allocation."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manyviews.runs.folder import VERSIONS, provenance

Finding = tuple[str, str, str]
"""`ok`, `warn` or `FAIL`; what it is about; what was found, and what to do."""
STYLES = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


def doctor(arguments: argparse.Namespace) -> int:
    """Prints a line for each check. Returns 1 if something would break a run."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        versions,
        gpus,
        collectives,
        lambda: file_system(Path(arguments.run)),
        lambda: shards(arguments.data),
        limits,
        slurm,
    ]
    console, table = Console(width=140 if not sys.stdout.isatty() else None), Table(show_header=False)
    failed = False
    for check in checks:
        for state, subject, text in check():
            failed |= state == "FAIL"
            table.add_row(f"[{STYLES[state]}]{state}[/]", escape(subject), escape(text))
    console.print(table)
    print("a run would break: mend what FAILs" if failed else "nothing here would break a run")
    return int(failed)


def versions() -> Iterator[Finding]:
    """Packages that are needed, with their versions."""
    found = provenance()["versions"]
    missing = [name for name in VERSIONS if found[name] is None]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield "ok", "versions", f"Python {platform.python_version()}, {text}"
    if missing:
        yield "FAIL", "versions", f"{', '.join(missing)} not installed: pip install -e ."
    if torch.__version__.startswith("2.13."):
        yield "FAIL", "versions", "torch 2.13 has no torchvision: install another"


def gpus() -> Iterator[Finding]:
    """Devices, whether they compute, and what they can."""
    if not torch.cuda.is_available():
        built = "a CPU build of torch" if torch.version.cuda is None else f"torch for CUDA {torch.version.cuda}"
        yield (
            "warn",
            "GPUs",
            f"none in sight ({built}; CUDA_VISIBLE_DEVICES {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})",
        )
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        try:
            x = torch.ones(1024, 1024, device=f"cuda:{number}")
            right = (x @ x)[0, 0].item() == 1024
            free = torch.cuda.mem_get_info(number)[0]
        except RuntimeError as error:
            yield "FAIL", f"GPU {number}", f"{properties.name}: {error}"
            continue
        text = f"{properties.name}, {free / 2**30:.0f} of {properties.total_memory / 2**30:.0f} GiB free"
        state = "ok" if right and free > 0.9 * properties.total_memory else "warn" if right else "FAIL"
        yield state, f"GPU {number}", text + ("" if right else ": wrong result of a product")
    if not torch.cuda.is_bf16_supported():
        yield "warn", "GPUs", "no bfloat16: use trainer.precision 16-mixed or 32"


def collectives() -> Iterator[Finding]:
    """An all-reduce of two processes or of all GPUs of this machine, over the backend that training would use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend, world = ("nccl", count) if count > 1 else ("gloo", 2)
    subject = f"{backend}, {world} ranks"
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            torch.multiprocessing.spawn(_reduce, (world, backend, f"file://{folder}/meet"), nprocs=world)  # type: ignore[attr-defined,no-untyped-call]
        except Exception as error:
            yield "FAIL", subject, f"{error}".strip().splitlines()[-1] + " (NCCL_DEBUG=INFO tells more)"
            return
        seconds = time.perf_counter() - started
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if backend == "nccl" else ""
    yield "ok", subject, f"{nccl} all-reduce right, {seconds:.1f} s with start-up".strip()
    if count == 1:
        yield "warn", "nccl", "one GPU here: NCCL was not tried"


def _reduce(rank: int, world: int, backend: str, meet: str) -> None:
    torch.distributed.init_process_group(
        backend, init_method=meet, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    value = torch.full((1 << 20,), float(rank + 1), device=device)
    torch.distributed.all_reduce(value)
    assert value[0].item() == world * (world + 1) / 2, f"all-reduce gave {value[0].item()}"
    torch.distributed.destroy_process_group()


def file_system(folder: Path) -> Iterator[Finding]:
    """Where runs go: write, sync, lock, room, and whether other nodes would see it."""
    subject, made = f"runs in {folder}", folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with made.open("wb") as f:
            started = time.perf_counter()
            f.write(os.urandom(1 << 26))
            f.flush()
            os.fsync(f.fileno())
            speed = 64 / (time.perf_counter() - started)
            try:
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                yield "warn", subject, f"no locks ({error}): two jobs in one run folder would not be noticed"
    except OSError as error:
        yield "FAIL", subject, f"cannot write: {error}"
        return
    finally:
        with contextlib.suppress(OSError):
            made.unlink()
    free = shutil.disk_usage(folder).free / 2**30
    state = "warn" if free < 20 else "ok"
    yield (
        state,
        subject,
        f"writes {speed:.0f} MB/s synced, {free:.0f} GiB free (a checkpoint is kept keep_last + 1 times)",
    )
    kind = _mounted_as(folder)
    if kind in ("tmpfs", "overlay"):
        yield "warn", subject, f"on {kind}, which other nodes do not see and which may not outlive this one"
    else:
        yield "ok", subject, f"on {kind}"


def _mounted_as(folder: Path) -> str:
    """Type of the file system."""
    best, kind = "", "an unknown file system"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, name, *_ = line.split()
        if len(where) >= len(best) and (where == "/" or f"{folder.resolve()}/".startswith(f"{where}/")):
            best, kind = where, name
    return kind


def shards(root: str | None) -> Iterator[Finding]:
    """Whether they open, and how fast samples of random places are read."""
    if root is None:
        yield "warn", "shards", "none given: --data FOLDER tries them"
        return
    feeding = importlib.import_module("viewshards.shards")  # the packages know each other by name only
    try:
        started = time.perf_counter()
        found = feeding.ShardSet(root, "train")
        yield "ok", f"shards {root}", f"{len(found)} samples, opened in {time.perf_counter() - started:.2f} s"
        number, size, started = min(len(found), 1000), 0, time.perf_counter()
        for i in torch.randperm(len(found))[:number].tolist():
            size += sum(map(len, found.read(i).values()))
        seconds = time.perf_counter() - started
    except (ValueError, OSError) as error:
        yield "FAIL", f"shards {root}", str(error)
        return
    text = (
        f"{number / seconds:.0f} samples/s, {size / seconds / 1e6:.0f} MB/s, at random by one process (repeats: cached)"
    )
    yield "ok", f"shards {root}", text


def limits() -> Iterator[Finding]:
    """Of the system: open files, shared memory, cores."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield ("ok" if files >= 4096 else "warn"), "open files", f"{files}" + ("" if files >= 4096 else ": ulimit -n 65536")
    shared = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").exists() else 0.0
    few = "" if shared >= 1 else ": loaders pass batches through it; give the container --shm-size=16g"
    yield ("ok" if shared >= 1 else "FAIL"), "/dev/shm", f"{shared:.1f} GiB{few}"
    cores, devices = len(os.sched_getaffinity(0)), max(1, torch.cuda.device_count() if torch.cuda.is_available() else 1)
    state = "ok" if cores >= 4 * devices else "warn"
    yield state, "cores", f"{cores} for {devices} device(s)" + ("" if state == "ok" else ": loaders may starve it")


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted, and requeued."""
    if shutil.which("sbatch") is None:
        inside = "inside a job, in a container" if "SLURM_JOB_ID" in os.environ else "no sbatch here"
        yield "warn", "Slurm", f"{inside}: submit from a login node"
        return
    try:
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30, "check": True}
        done = subprocess.run(["scontrol", "show", "config"], **options)
        partitions = subprocess.run(["sinfo", "-h", "-o", "%P %a %l %D %G"], **options)
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        yield "warn", "Slurm", f"installed, but no cluster answers ({said})"
        return
    setting = {k.strip(): v.strip() for k, _, v in (line.partition("=") for line in done.stdout.splitlines())}
    yield "ok", "Slurm", f"{setting.get('SLURM_VERSION')}, cluster {setting.get('ClusterName')}"
    wait = int(setting.get("KillWait", "30").split()[0])
    if wait < 30:
        yield "warn", "Slurm", f"KillWait is {wait} s: a save on SIGTERM may be cut off (the one on USR1 has 120 s)"
    if setting.get("JobRequeue") == "0":
        yield "ok", "Slurm", "JobRequeue is off by default; the scripts ask for --requeue themselves"
    for line in partitions.stdout.splitlines():
        name, state, limit, nodes, gres = line.split()
        yield (
            ("ok" if state == "up" else "warn"),
            f"partition {name}",
            f"{state}, limit {limit}, nodes: {nodes}, {'no GPUs' if gres == '(null)' else gres}",
        )
