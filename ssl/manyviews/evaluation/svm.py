"""Linear support vector machines on frozen features: the usual reading of point encoders."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor
from typing_extensions import override

from manyviews import foreign
from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import Protocol, Result, need_labels


@dataclass
class LinearSVM(Protocol):
    """One-against-rest linear SVM (squared hinge, C times the sum over samples) on standardised features.

    Mean and deviation are those of train; every natural view is a sample. Nothing is chosen.

    Attributes:
        c: the paper's runners leave it at 1; here 0.01, which suits mean and maximum of tokens.
    """

    c: float = 0.01
    name = "svm"

    @property
    @override
    def title(self) -> str:
        return f"svm_c{self.c:g}"

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        train, val = need_labels("linear SVM", train, val)
        machine, label = Machine(*train.flat(), self.c), val.flat()[1]
        predicted = machine(val.flat()[0])
        classes = int(torch.cat([train.label, label]).max()) + 1
        confusion = torch.bincount(label * classes + predicted, minlength=classes**2).view(classes, classes)
        details = {"converged": machine.converged}
        score = {"svm": (predicted == label).double().mean().item()}
        return Result(score, details, confusion, {"svm": 1 / classes}, {"svm": len(val.label)})


@dataclass
class FewShotSVM(Protocol):
    """N-way K-shot over folds: K training samples and some test samples of N classes, a linear SVM on each fold.

    Classes are drawn, shots are of train, queries of val, as the papers split ModelNet40; but the papers fine-tune the
    whole encoder on each fold, and here it is frozen. The folds are in the result's details, and are read from `folds`
    where a file of theirs is given.

    Attributes:
        ways: N. shots: K. queries: of each class, or as many as val has. repeats: folds. c: of the SVM. seed: of the
            folds. folds: JSON file with the folds of an earlier result.
    """

    ways: int = 5
    shots: int = 10
    queries: int = 20
    repeats: int = 10
    c: float = 0.01
    seed: int = 0
    folds: str | None = None
    name = "fewshot_svm"

    @property
    @override
    def title(self) -> str:
        return f"fewshot_{self.ways}way_{self.shots}shot_svm"

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        train, val = need_labels("few-shot", train, val)
        folds = self.drawn(train, val)
        places = [{int(i): k for k, i in enumerate(part.index)} for part in (train, val)]
        scores, converged = [], True
        for number, fold in enumerate(folds):
            self._check(fold, places, number)
            shots, queries = (
                part.subset(torch.tensor([place[i] for i in fold[name]]))
                for name, part, place in zip(("train", "val"), (train, val), places, strict=True)
            )
            machine = Machine(*shots.flat(), self.c)
            converged &= machine.converged
            scores.append((machine(queries.flat()[0]) == queries.flat()[1]).double().mean())
        each = torch.stack(scores)
        details = {
            "std_over_folds": each.std().item() if len(each) > 1 else 0.0, "per_fold": each.tolist(),
            "converged": converged, "folds": folds,
        }  # fmt: skip
        return Result({self.title: each.mean().item()}, details, chance={self.title: 1 / self.ways})

    def _check(self, fold: dict[str, list[int]], places: list[dict[int, int]], number: int) -> None:
        """A fold from a file is what is asked for, and of these shards."""
        if len(fold["classes"]) != self.ways or len(fold["train"]) != self.ways * self.shots:
            raise ValueError(
                f"{self.folds}: fold {number} has {len(fold['classes'])} classes and {len(fold['train'])} shots, not "
                f"{self.ways} and {self.ways * self.shots}: give the ways and shots it was made with"
            )
        for name, place in zip(("train", "val"), places, strict=True):
            strange = [i for i in fold[name] if i not in place]
            if strange:
                raise ValueError(f"{self.folds}: fold {number} names sample {strange[0]}, which {name} does not have")

    @staticmethod
    def _read(file: Path, shards: dict[str, Any]) -> list[dict[str, list[int]]]:
        """The folds of an earlier result, or of a file of them alone.

        Raises:
            ValueError: if there are none, or they were drawn on other shards.
        """
        content = foreign.read_json(file, foreign.Unchecked)
        content = content if isinstance(content, dict) else {}
        folds: Any = (content["details"] if isinstance(content.get("details"), dict) else content).get("folds")
        foreign.check(folds, list[dict[str, list[int]]], f"{file}: folds")
        if wrong := [number for number, fold in enumerate(folds) if fold.keys() != {"classes", "train", "val"}]:
            raise ValueError(f"{file}: fold {wrong[0]} must have classes, train and val")
        before = content.get("shards")
        if before is not None and None not in shards.values() and before != shards:
            counts = (_samples(before), _samples(shards))
            raise ValueError(f"{file}: its folds were drawn on other shards ({counts[0]} there, {counts[1]} here)")
        return folds  # type: ignore[no-any-return]

    def drawn(self, train: Features, val: Features) -> list[dict[str, list[int]]]:
        """Folds: classes, and the index of the samples of train and val.

        Raises:
            ValueError: if there are too few classes.
        """
        if self.folds is not None:
            return self._read(Path(self.folds), {"train": train.shards, "val": val.shards})
        counts = {int(c): ((train.label == c).sum(), (val.label == c).sum()) for c in train.label.unique()}
        fitting = [c for c, (a, b) in counts.items() if a >= self.shots and b >= 1]
        if len(fitting) < self.ways:
            raise ValueError(
                f"few-shot needs {self.ways} classes with {self.shots} samples in train and some in val, there are "
                f"{len(fitting)}: use fewer ways or shots"
            )
        generator, folds = torch.Generator().manual_seed(self.seed), []
        for _ in range(self.repeats):
            classes = [fitting[int(k)] for k in torch.randperm(len(fitting), generator=generator)[: self.ways]]
            parts = []
            for part, many in ((train, self.shots), (val, self.queries)):
                members = [part.index[part.label == c] for c in classes]
                chosen = [m[torch.randperm(len(m), generator=generator)[:many]] for m in members]
                parts.append(torch.cat(chosen).tolist())
            folds.append({"classes": classes, "train": parts[0], "val": parts[1]})
        return folds


def _samples(shards: Any) -> str:
    named = shards.items() if isinstance(shards, dict) else ()
    found = {split: value.get("samples") for split, value in named if isinstance(value, dict)}
    return ", ".join(f"{split} of {count} samples" for split, count in found.items()) or "unknown"


class Machine:
    """A one-against-rest linear SVM on standardised features.

    Args:
        x: (n, D). y: (n,) classes. c: C.

    Attributes:
        weight: (C or 1, D), bias: of standardised features. converged: whether the solver reached its end.
    """

    def __init__(self, x: Tensor, y: Tensor, c: float) -> None:
        self.mean, self.std = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        self._solver = LinearSVC(C=c, max_iter=10_000, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said in the result instead
            self._solver.fit(((x - self.mean) / self.std).double().numpy(), y.numpy())
        self.weight, self.bias = (torch.from_numpy(part) for part in (self._solver.coef_, self._solver.intercept_))
        self.converged = bool(self._solver.n_iter_ < self._solver.max_iter)

    def __call__(self, x: Tensor) -> Tensor:
        """(m,) classes of features (m, D)."""
        return torch.from_numpy(self._solver.predict(((x - self.mean) / self.std).double().numpy()))
