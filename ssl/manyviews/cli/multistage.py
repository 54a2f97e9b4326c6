"""MCL, multistage contrastive learning (Zhang et al., "Learning the Unlearned", ECCV 2024).

A stage is a run. After it the training set is clustered in its feature space, and the next stage, from a fresh start,
draws every global batch from one cluster: what earlier stages already tell apart no longer helps, so it has to learn
something else. The features of all stages, each of unit length, stand side by side.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from manyviews import foreign
from manyviews.cli import early, evaluate
from manyviews.cli.fit import fit
from manyviews.evaluation import KNN, LinearProbe
from manyviews.evaluation.features import Features
from manyviews.similarity import unit


class StageError(RuntimeError):
    """A stage ended before its end; `code` is the exit code of `manyviews fit`."""

    def __init__(self, run: Path, code: int) -> None:
        super().__init__(f"{run}: fit ended with exit code {code}")
        self.code = code


def multistage(argv: list[str], folder: Path, stages: int, k: int = 10) -> list[Path]:
    """Runs all stages, or those still to be run, and returns their folders.

    Args:
        argv: arguments of `manyviews fit` without `--run`.
        folder: stage s goes to `FOLDER/stage-s`; a single stage to FOLDER itself.
        stages: how many, 1 or more.
        k: clusters each stage adds; after stage t there are up to k^(t + 1).

    Raises:
        StageError: if a stage did not reach its end.
    """
    if stages > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("multistage runs on one device: train the stages by `manyviews fit` with data.clusters")
    early.check_fit(argv)
    runs = [folder] if stages == 1 else [folder / f"stage-{stage}" for stage in range(stages)]
    for stage, run in enumerate(runs):
        before = folder / f"clusters-{stage - 1}.npz"
        clusters = ["--data.init_args.clusters", str(before)] if stage else []
        code = fit([*argv, "--run", str(run), *clusters])
        if code:
            raise StageError(run, code)
        if stage + 1 < stages and not _is_whole(folder / f"clusters-{stage}.npz"):
            cluster(run, k, before if stage else None, folder / f"clusters-{stage}.npz")
    return runs


def _is_whole(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return bool(file["numbers"].ndim == 1 and len(file["shards"]))
    except Exception:  # not there, or damaged in any way: made again
        return False


def cluster(run: Path, k: int, before: Path | None, out: Path, seed: int = 0) -> None:
    """Writes the k-means cluster of each training sample in a run's space, below that of earlier stages."""
    trained = evaluate.bring_up(argparse.Namespace(checkpoint=None, run=str(run), device="auto"))
    earlier = None if before is None else trained.data.numbers(before)
    trained.data.keep_numbers(out, refine(earlier, clusters_of(trained.features(trained.data.train_set), k, seed), k))


def clusters_of(features: Features, k: int, seed: int) -> NDArray[np.int64]:
    """k-means on unit features; a sample of several natural views counts with their mean."""
    z = unit(features.views).mean(0).numpy()
    labels: NDArray[np.int64] = MiniBatchKMeans(k, random_state=seed, n_init=3).fit_predict(z)
    return labels.astype(np.int64)


def refine(before: NDArray[np.int64] | None, now: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Mixed radix: before * k + now."""
    return now if before is None else before * k + now


def command(arguments: argparse.Namespace, rest: list[str]) -> None:
    """All stages, then kNN and a linear probe on each stage's features and on all of them."""
    file = Path(arguments.config)
    given = foreign.read_yaml(file)
    words = [word for text in rest for word in text.split("=", 1)]
    named = {word for key, word in itertools.pairwise(words) if key == "--trust"}
    named |= {word for word in words if foreign.PATH.fullmatch(word)}
    if foreign.owner_of(file) is None:
        named |= foreign.class_paths(given)
    with foreign.trusting(named):  # the user's own words, in their own runs
        _command(arguments, rest)


def _command(arguments: argparse.Namespace, rest: list[str]) -> None:
    folder = Path(arguments.run)
    try:
        runs = multistage(["--config", arguments.config, *rest], folder, arguments.stages, arguments.k)
    except StageError as error:  # fit has said why
        raise SystemExit(error.code) from error
    trained = [
        evaluate.bring_up(argparse.Namespace(checkpoint=None, run=str(run), device=arguments.device)) for run in runs
    ]
    splits = [[each.features(split) for each in trained] for split in ("train", "val")]
    for stop in range(1, len(runs) + 1):
        train, val = (evaluate.side_by_side(features[:stop]) for features in splits)
        scores = {name: s for p in (KNN(), LinearProbe()) for name, s in p.evaluate(train, val).scores.items()}
        print(f"stages 0 to {stop - 1}: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
