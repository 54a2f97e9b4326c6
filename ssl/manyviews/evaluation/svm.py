"""Linear support vector machines on frozen features: the usual reading of point encoders."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor

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

    def evaluate(self, train: Features, val: Features) -> Result:  # noqa: D102
        train, val = need_labels("linear SVM", train, val)
        predicted, label = svm(*train.flat(), val.flat()[0], self.c), val.flat()[1]
        classes = int(torch.cat([train.label, label]).max()) + 1
        confusion = torch.bincount(label * classes + predicted, minlength=classes**2).view(classes, classes)
        return Result({"svm": (predicted == label).double().mean().item()}, {"c": self.c}, confusion)


@dataclass
class FewShotSVM(Protocol):
    """N-way K-shot over folds: K training samples and some test samples of N classes, a linear SVM on each fold.

    The split of the papers (ModelNet40 few-shot): classes are drawn, shots are of train, queries of val. The folds are
    in the result's details, and are read from `folds` where a file of theirs is given.

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

    def evaluate(self, train: Features, val: Features) -> Result:  # noqa: D102
        train, val = need_labels("few-shot", train, val)
        folds = self.drawn(train, val)
        place_train, place_val = ({int(i): k for k, i in enumerate(part.index)} for part in (train, val))
        scores = []
        for fold in folds:
            shots = train.subset(torch.tensor([place_train[i] for i in fold["train"]]))
            queries = val.subset(torch.tensor([place_val[i] for i in fold["val"]]))
            predicted = svm(*shots.flat(), queries.flat()[0], self.c)
            scores.append((predicted == queries.flat()[1]).double().mean())
        each = torch.stack(scores)
        name = f"fewshot_{self.ways}way_{self.shots}shot_svm"
        details = {"std_over_folds": each.std().item(), "per_fold": each.tolist(), "folds": folds}
        return Result({name: each.mean().item()}, details)

    def drawn(self, train: Features, val: Features) -> list[dict[str, list[int]]]:
        """Folds: classes, and the index of the samples of train and val.

        Raises:
            ValueError: if there are too few classes.
        """
        if self.folds is not None:
            content = json.loads(Path(self.folds).read_text())
            found: list[dict[str, list[int]]] = content.get("details", content)["folds"]
            return found
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


def svm(x: Tensor, y: Tensor, test: Tensor, c: float) -> Tensor:
    """(m,) classes of test features (m, D), of a machine trained on x (n, D) with classes y (n,)."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    machine = LinearSVC(C=c, max_iter=10_000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(((x - mean) / std).double().numpy(), y.numpy())
    return torch.from_numpy(machine.predict(((test - mean) / std).double().numpy()))
