"""Studies: a recipe in several variants, each over several seeds, measured alike. Claims and leaderboards are studies.

Each run is a real `manyviews fit` in a folder of its own and a process of its own, so a study can be broken off
anywhere and goes on with the same command.
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from manyviews import foreign, signals
from manyviews.runs.files import write_text

KEYS = {
    "title",
    "source",
    "scale",
    "needs",
    "recipe",
    "set",
    "seeds",
    "variants",
    "effects",
    "curve",
    "columns",
    "sort",
    "labels",
    "banks",
}
RESULT = "result.json"
Job = tuple[str, int]
"""Variant and seed."""


@dataclass(frozen=True)
class Study:
    """What a study's YAML says.

    Attributes:
        name: of the file. folder: it lies in.
        content: title, source, scale (what it can and cannot show), effects, curve, columns, sort.
        variants: the resolved recipe of each. seeds: of each variant.
        needs: folders, and what makes each of them: a source for `viewshards pack` and its options; for a trained tower
            `export:RECIPE` and options of fit; for trajectories `tracks:FOLDER` and options of `viewshards tracks`.
    """

    name: str
    folder: Path
    content: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    seeds: list[int]
    needs: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Study:
        """Reads and checks a study.

        Raises:
            ValueError: naming the file and what is wrong in it.
        """
        content = foreign.read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected the keys {', '.join(sorted(KEYS))}, got {type(content).__name__}")
        unknown = content.keys() - KEYS
        if unknown:
            raise ValueError(f"{path}: unknown key {sorted(unknown)[0]!r}; there are {', '.join(sorted(KEYS))}")
        variants = {}
        for name, changes in content["variants"].items():
            changes = dict(changes or {})
            base = changes.pop("recipe", content.get("recipe"))
            if base is None or not (path.parent / base).exists():
                raise ValueError(f"{path}: variant {name} has no recipe, or it does not exist: {base}")
            recipe = foreign.read_yaml(path.parent / base)
            variants[name] = merged(merged(recipe, content.get("set", {})), changes)
        for effect in content.get("effects", []):
            missing = effect["of"].keys() - variants.keys()
            if missing:
                raise ValueError(f"{path}: effect {effect['name']!r} names {sorted(missing)[0]!r}, which is no variant")
        seeds = content.get("seeds", [0, 1, 2])
        return cls(path.stem, path.parent, content, variants, seeds, content.get("needs", {}))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `changes` put over it; a leaf of None takes a key away, another class its arguments."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            other_class = key != "model" and value.get("class_path", ...) != result[key].get("class_path", ...)
            result[key] = value if "class_path" in value and other_class else merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def run(study: Study, out: Path, data: Path | None, workers: int) -> dict[str, list[dict[str, Any]]]:
    """Runs what is not yet done and returns each variant's measurements, one a seed.

    Raises:
        ValueError: if a run failed; its log is named.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's way of saying ctrl-C
    prepare(study, data)
    jobs = [(name, seed) for seed in study.seeds for name in study.variants]
    folders = {job: out / study.name / f"{job[0]}-seed{job[1]}" for job in jobs}
    labels = study.content.get("labels", [None])
    todo = [job for job in jobs if not _done(study.variants[job[0]], job[1], folders[job], labels)]
    print(f"{study.name}: {len(jobs)} runs, {len(jobs) - len(todo)} done before", file=sys.stderr)
    failed = _run_all(study, {job: folders[job] for job in todo}, workers)
    if failed:
        raise ValueError(f"{study.name}: {len(failed)} of {len(jobs)} runs failed; " + "; ".join(failed))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in study.variants}
    for name, seed in jobs:
        results[name].append(json.loads((folders[name, seed] / RESULT).read_text()))
    return results


def _run_all(study: Study, todo: dict[Job, Path], workers: int) -> list[str]:
    """Runs these, `workers` at a time; returns what went wrong. If it is stopped, so are they, before it raises."""
    labels = study.content.get("labels", [None])
    banks = {label: str(study.folder / file) for label, file in study.content.get("banks", {}).items()}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["manyviews.cli.fit", "manyviews.cli.measure"])
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # `timeout` and Slurm send it to the server too, which
    forkserver.ensure_running()  # would die, and nobody could wait for its runs; they take it back
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    started, number, failed = time.monotonic(), 0, []
    process: BaseProcess
    waiting, running = list(todo), dict[Any, tuple[BaseProcess, Job]]()
    signals.received = None
    before = signals.listen(signal.SIGINT, signal.SIGTERM)  # an exception while a process starts would lose that one
    try:
        while (waiting or running) and signals.received is None:
            while waiting and len(running) < workers and signals.received is None:
                name, seed = job = waiting.pop(0)
                options = study.variants[name], seed, todo[job], study.folder, labels, threads, banks
                process = context.Process(target=_one, args=options)
                process.start()
                running[process.sentinel] = process, job
            for sentinel in wait(list(running), timeout=0.5):
                process, job = running.pop(sentinel)
                process.join()
                error = _error(todo[job], process.exitcode)
                number += 1
                left = (time.monotonic() - started) / number * (len(todo) - number)
                name, seed = job
                state = "FAILED" if error else "done"
                print(
                    f"{study.name}: {number}/{len(todo)} {name} seed {seed} {state}, about {left / 60:.0f} min left",
                    file=sys.stderr,
                )
                if error:
                    failed.append(f"{name} seed {seed}: {error} (see {todo[job] / 'log.txt'})")
    finally:
        for process, _ in running.values():  # each saves at its next batch, and goes on from there
            process.terminate()
        for process, _ in running.values():
            process.join()
        signals.restore(before)
    stopped, signals.received = signals.received, None
    if stopped is not None:
        raise KeyboardInterrupt
    return failed


def _error(folder: Path, code: int | None) -> str | None:
    """What went wrong in a run that has ended, if it left no result."""
    if (folder / RESULT).exists():
        return None
    log = folder / "log.txt"
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return lines[-1] if code == 0 and lines else f"ended with exit code {code}"


def prepare(study: Study, data: Path | None) -> None:
    """Packs the shards and trains the towers that a study needs and that are not there.

    Raises:
        FileNotFoundError: if raw data is needed and `--data-dir` does not hold it.
    """
    for folder, source in study.needs.items():
        if (Path(folder) / "manifest.json").exists() or (Path(folder) / "config.json").exists():
            continue
        if source.startswith("export:"):
            recipe, *options = shlex.split(source.removeprefix("export:"))
            print(f"{study.name}: training {recipe} for {folder}", file=sys.stderr)
            run = Path(folder).with_suffix(".run")
            _call("manyviews", "fit", "--config", study.folder / recipe, "--run", run, *options)
            _call("manyviews", "export", "--run", run, "--out", folder)
            continue
        if source.startswith("tracks:"):
            raw, *options = shlex.split(source.removeprefix("tracks:"))
            print(f"{study.name}: tracking {raw}", file=sys.stderr)
            _call("viewshards", "tracks", raw, folder, *options)
            continue
        raw, *options = shlex.split(source)
        if "{data}" in raw:
            if data is None or not Path(raw.format(data=data)).exists():
                raise FileNotFoundError(f"{study.name} needs {raw}: give --data-dir, a folder that holds it unpacked")
            raw = raw.format(data=data)
        print(f"{study.name}: packing {raw}", file=sys.stderr)
        _call("viewshards", "pack", raw, folder, *options)


def _call(package: str, *arguments: object) -> None:
    code = f"import sys; from {package}.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def _resolved(recipe: dict[str, Any], seed: int) -> tuple[dict[str, Any], int]:
    """The recipe of one run, and how many stages it has."""
    recipe = merged(recipe, {"seed_everything": seed, "data": {"init_args": {"seed": seed}}})
    return recipe, recipe.pop("stages", 1)


def _done(recipe: dict[str, Any], seed: int, folder: Path, labels: list[str | None]) -> bool:
    """Whether this very run was finished before.

    Raises:
        ValueError: if the folder holds the result of another recipe.
    """
    if not (folder / RESULT).exists():
        return False
    resolved, stages = _resolved(recipe, seed)
    try:
        result = json.loads((folder / RESULT).read_text())
        same = foreign.read_yaml(folder / "recipe.yaml") == resolved
        same = same and (result["stages"], result["labels"]) == (stages, labels)
    except (ValueError, KeyError, TypeError) as error:
        print(f"{folder / RESULT}: damaged ({error}); the run is measured again", file=sys.stderr)
        return False
    if not same:
        raise ValueError(f"{folder} holds a result of another recipe: delete it, or give another --out")
    return True


def _stop_with(study: BaseProcess) -> None:
    """A run does not outlive a study that was killed: it saves at its next batch."""
    study.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _one(
    recipe: dict[str, Any],
    seed: int,
    folder: Path,
    beside: Path,
    labels: list[str | None],
    threads: int,
    banks: dict[str, str] | None = None,
) -> str | None:
    """One run in a process of its own: fit, measure, write the result. Returns what went wrong."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if (study := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_stop_with, args=(study,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(beside))  # classes of the study's own
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "recipe.yaml"
    recipe, stages = _resolved(recipe, seed)
    write_text(config, yaml.safe_dump(recipe, sort_keys=False))
    with (
        (folder / "log.txt").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            from manyviews import foreign
            from manyviews.cli.measure import measure
            from manyviews.cli.multistage import multistage
            from manyviews.runs import Ledger

            before = [start for path in (folder / "run").rglob("attempts") for start in Ledger(path).all()]
            wall, cpu = time.perf_counter(), sum(os.times()[:4])  # loader processes too
            with foreign.trusting(foreign.class_paths(recipe)):  # a study's recipe is the user's own
                runs = multistage(["--config", str(config)], folder / "run", stages)
                seconds = time.perf_counter() - wall + sum(start.seconds for start in before)
                used = sum(os.times()[:4]) - cpu + sum(start.cpu_seconds for start in before)
                found = measure(runs, labels, banks or {})
        except Exception as error:
            import traceback

            traceback.print_exc(file=log)
            return f"{type(error).__name__}: {error}"
    found |= {"seconds": seconds, "cpu_seconds": used, "stages": stages, "labels": labels}
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_text(folder / RESULT, json.dumps(found, indent=1) + "\n")
    return None
