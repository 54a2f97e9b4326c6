"""Numbers that a change of the house must not change, recorded before it and compared after it on the same machine.

    python -m tests.support.numbers record FILE       in a checkout of the commit before
    python -m tests.support.numbers compare FILE      in the one after

They are: the value and the gradient's length of every objective of the tables, in float64; the losses of every method's
first three steps and the length of its weights after them; the scores of every protocol on fixed features. Each is found
by its name in the tables, so that both may move. `compare` prints what differs by more than 1e-12 of its size (1e-6 for
what is computed in float32) and ends with 1 if anything does, or if a name is gone. New names are only counted.
"""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from manyviews.evaluation import (
    KNN,
    FewShot,
    FewShotSVM,
    LinearProbe,
    LinearSVM,
    LogisticRegression,
    Outliers,
    Retrieval,
)  # fmt: skip
from tests.manyviews.test_evaluation import clusters
from tests.manyviews.test_methods import fit
from tests.manyviews.test_objectives import CASES, batch
from tests.support.every import TRIALS, VIDEO_METHODS

TOLERANCE = {"objective": 1e-12, "method": 1e-6, "protocol": 1e-6}


def objective(case) -> dict[str, float]:
    """Value and length of the gradient of the views."""
    found = {}
    for grouped in (False, True) if case.grouped else (False,):
        views, context, d = batch(case, grouped)
        views = [view.requires_grad_() for view in views]
        torch.manual_seed(0)
        loss = case.build(d)(views, **context)
        slopes = torch.autograd.grad(loss, views, allow_unused=True)
        length = sum(float(slope.square().sum()) for slope in slopes if slope is not None) ** 0.5
        suffix = " grouped" if grouped else ""
        found |= {f"value{suffix}": loss.item(), f"gradient{suffix}": length}
    return found


class Losses(pl.Callback):
    """The loss of each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen.append(outputs["loss"].item())


def method(trial) -> dict[str, float]:
    """Three losses, and the length of all weights after them."""
    made, losses = trial.make(), Losses()
    fit(made, 3, [losses], trial.batches())
    weights = sum(float(p.detach().double().square().sum()) for p in made.parameters()) ** 0.5
    return {**{f"loss {step}": loss for step, loss in enumerate(losses.seen)}, "weights": weights}


def protocols() -> dict[str, dict[str, float]]:
    """Scores on fixed features: two views of learnable classes."""
    train, val = clusters(200, views=2), clusters(90, views=2, seed=1)
    other = clusters(90, seed=2, classes=3)
    made = (
        KNN((5, 20), (0.07, 0.1)), LinearProbe(epochs=5), LogisticRegression(), LinearSVM(), FewShotSVM(3, 5),
        FewShot(3, 2, 5, episodes=20), Retrieval(),
    )  # fmt: skip
    found = {type(each).__name__: each.evaluate(train, val) for each in made}
    found["Outliers"] = Outliers().against(train, val, other)
    return {name: result.scores for name, result in found.items()}


def numbers() -> dict[str, dict[str, float]]:
    """All of them, by kind and name."""
    torch.manual_seed(0)
    found = {f"protocol/{name}": scores for name, scores in protocols().items()}
    for case in CASES:
        found[f"objective/{case.name}"] = objective(case)
    for name, trial in {**TRIALS, **VIDEO_METHODS}.items():
        found[f"method/{name}"] = method(trial)
    return found


def differences(before: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> list[str]:
    """What is not as it was, in words."""
    told = [f"{name}: gone" for name in before.keys() - now.keys()]
    for name in before.keys() & now.keys():
        tolerance = TOLERANCE[name.partition("/")[0]]
        for key, value in before[name].items():
            mine = now[name].get(key)
            same = mine is not None and (abs(mine - value) <= tolerance * max(1.0, abs(value)) or mine == value)
            if not same and not (mine is not None and mine != mine and value != value):
                told.append(f"{name} {key}: {value!r} before, {mine!r} now")
    return sorted(told)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    now = numbers()
    if arguments.what == "record":
        arguments.file.write_text(json.dumps(now, indent=1))
        print(f"{arguments.file}: {len(now)} recorded")
        return 0
    before = json.loads(arguments.file.read_text())
    told = differences(before, now)
    print(*told, sep="\n", end="\n" if told else "")
    print(f"{len(before)} before, {len(now.keys() - before.keys())} new, {len(told)} numbers differ")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
