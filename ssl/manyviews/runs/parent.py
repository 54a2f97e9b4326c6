"""A run that begins with the weights of another one: with other data, another schedule, a new optimiser."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from manyviews.internals import BatchNorm
from manyviews.runs.storage import load, newest_whole, sha256_of

logger = logging.getLogger(__name__)


def start_from(method: pl.LightningModule, path: Path) -> dict[str, Any]:
    """Loads the weights of a run (its newest checkpoint) or of a checkpoint into a fresh method.

    Parameters and running statistics of the same name and shape are taken; what an objective remembers of samples
    (queues, memories, counters) begins anew, and so do optimiser and schedule. The backbone has to be the same; of a
    method whose teacher is evaluated (DINO) another method takes the teacher's.

    Returns:
        What is kept of the parent: run, checkpoint, step, SHA-256.

    Raises:
        FileNotFoundError: without the run. ValueError: if the file is no checkpoint of a run, or its backbone differs.
    """
    path = path.expanduser()
    if path.is_dir():
        checkpoint = newest_whole(path / "checkpoints") or newest_whole(path)
        if checkpoint is None:
            raise FileNotFoundError(f"{path}: no whole checkpoint in {path}/checkpoints to begin from")
    elif path.is_file():
        checkpoint = path
    else:
        raise FileNotFoundError(f"{path}: no such run or checkpoint to begin from")
    content = load(checkpoint)
    given = content.get("state_dict")
    if not isinstance(given, dict) or not isinstance(content.get("global_step"), int):
        raise ValueError(
            f"{checkpoint}: no checkpoint of a run; published weights are given as model.backbone.checkpoint"
        )
    own = method.state_dict()
    evaluated, said = content.get("evaluated"), list[str]()
    if isinstance(evaluated, str) and evaluated != "backbone" and getattr(method, "evaluated", "backbone") != evaluated:
        rest = {name: value for name, value in given.items() if not name.startswith("backbone.")}
        given = {
            f"backbone.{name.removeprefix(f'{evaluated}.')}" if name.startswith(f"{evaluated}.") else name: value
            for name, value in rest.items()
        }
        said = [f"as its backbone {evaluated}, and not the one that was trained"]
    remembered = {
        f"{name}.{buffer}"
        for name, part in method.named_modules()
        if name.split(".")[0] == "objective" and not isinstance(part, BatchNorm)
        for buffer, _ in part.named_buffers(recurse=False)
    }
    taken = {
        name: value
        for name, value in given.items()
        if name in own and name not in remembered and value.shape == own[name].shape
    }
    new, unused = own.keys() - taken.keys(), given.keys() - taken.keys()
    if other := sorted(name for name in new | unused if name.startswith("backbone.")):
        raise ValueError(f"{checkpoint}: its backbone is another one; these differ: {', '.join(other[:4])}")
    method.load_state_dict({**own, **taken})
    said.insert(0, f"begins with {len(taken)} tensors of step {content['global_step']} of {checkpoint}")
    said += [f"{what}: {', '.join(_tops(names))}" for what, names in (("new", new), ("not used", unused)) if names]
    logger.warning("; ".join(said))
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return {
        "run": str(run),
        "checkpoint": checkpoint.name,
        "step": content["global_step"],
        "sha256": sha256_of(checkpoint),
    }


def _tops(names: set[str]) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in names})
