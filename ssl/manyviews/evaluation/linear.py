"""Linear classifiers on frozen features. Nothing is chosen on val: a part of train, other each seed, decides."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from torch import Tensor
from typing_extensions import override

from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import Protocol, Result, need_labels


@dataclass
class LinearProbe(Protocol):
    """A linear layer by SGD (momentum 0.9, cosine to 0) on cached, standardised features.

    A grid of learning rates and weight decays is trained together. For each seed the setting with the best accuracy on
    the held-out part of train is trained again on all of train and read once on val. The lr is absolute.
    `linear_per_class` is the mean over val's classes of the accuracy within each, for sets with rare classes.

    Attributes:
        lr: learning rates of the grid. weight_decay: weight decays of the grid.
        epochs: over the features. batch_size: views a step.
        held_out: share of train's samples (all views of a sample together) that choose.
        seeds: one probe each; the score is their mean.
    """

    lr: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    weight_decay: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    epochs: int = 50
    batch_size: int = 256
    held_out: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    name = "linear"

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        train, val = need_labels("linear probe", train, val)
        classes = int(torch.cat([train.label, val.label]).max()) + 1
        settings = list(product(self.lr, self.weight_decay))
        accuracies, chosen, confusion = [], [], torch.zeros(classes, classes, dtype=torch.int64)
        for seed in self.seeds:
            fit, held = split(train, self.held_out, seed)
            predicted = self._predict(fit, held, classes, settings, seed)
            scores = (predicted == held.flat()[1][:, None]).float().mean(0)
            best = settings[int(scores.argmax())]
            label = val.flat()[1]
            final = self._predict(train, val, classes, [best], seed)[:, 0]
            accuracies.append((final == label).float().mean())
            chosen.append({"seed": seed, "lr": best[0], "weight_decay": best[1], "held_out": scores.max().item()})
            confusion += torch.bincount(label * classes + final, minlength=classes**2).view(classes, classes)
        return _over_seeds("linear", torch.stack(accuracies), chosen, confusion, len(val.label))

    def _predict(
        self, train: Features, test: Features, classes: int, settings: list[tuple[float, float]], seed: int
    ) -> Tensor:
        """(n, G) predictions on `test` of one classifier a setting, all trained in the same steps."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        x, y = (tensor.to(device) for tensor in train.flat())
        mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
        x, grid = (x - mean) / std, len(settings)
        lr, decay = (torch.tensor(column, device=device).view(1, grid, 1) for column in zip(*settings, strict=True))
        weight = torch.zeros(x.shape[1], grid, classes, device=device)
        bias = torch.zeros(1, grid, classes, device=device)
        momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
        generator = torch.Generator().manual_seed(seed)
        batches = max(1, len(x) // self.batch_size)
        for epoch in range(self.epochs):
            order = torch.randperm(len(x), generator=generator)
            for number, rows in enumerate(order.split(self.batch_size)[:batches]):
                progress = (epoch * batches + number) / (self.epochs * batches)
                rate = lr * (0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress))))
                logits = (x[rows] @ weight.flatten(1)).view(len(rows), grid, classes) + bias
                error = logits.softmax(2)  # d loss / d logits of the mean cross-entropy
                error[torch.arange(len(rows)), :, y[rows]] -= 1
                error /= len(rows)
                grads = [
                    (x[rows].T @ error.flatten(1)).view_as(weight).add_(weight * decay),
                    error.sum(0, keepdim=True),
                ]
                for parameter, momentum, grad in zip((weight, bias), momenta, grads, strict=True):
                    momentum.mul_(0.9).add_(grad)
                    parameter.sub_(rate * momentum)
        x_test = (test.flat()[0].to(device) - mean) / std
        return ((x_test @ weight.flatten(1)).view(len(x_test), grid, classes) + bias).argmax(2).cpu()


COARSE_PROBE = LinearProbe(lr=(0.003, 0.03, 0.3), weight_decay=(0.0, 1e-3, 1e-2), epochs=30)
"""The probe of `manyviews report`, of claims and leaderboards: a minute also for 3,072 raw pixels."""


@dataclass
class LogisticRegression(Protocol):
    """Scikit-learn's logistic regression (L-BFGS, at most 500 iterations) on standardised features: for small sets.

    `logistic_per_class` is the mean over val's classes of the accuracy within each.

    Attributes:
        c: inverse regularisation strengths to choose from. held_out, seeds: as in `LinearProbe`.
        limit: most training views; beyond it the linear probe is the tool.
    """

    c: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    held_out: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int = 50_000
    name = "logistic"

    @override
    def evaluate(self, train: Features, val: Features) -> Result:
        train, val = need_labels("logistic regression", train, val)
        if len(train.label) * len(train.views) > self.limit:
            raise ValueError(f"logistic regression is for up to {self.limit} views; use LinearProbe")
        classes = int(torch.cat([train.label, val.label]).max()) + 1
        accuracies, chosen, confusion = [], [], torch.zeros(classes, classes, dtype=torch.int64)
        label = val.flat()[1]
        predictions: dict[float, Tensor] = {}
        for seed in self.seeds:
            fit, held = split(train, self.held_out, seed)
            scores = [(_logistic(fit, held, c) == held.flat()[1]).float().mean().item() for c in self.c]
            best = self.c[scores.index(max(scores))]
            if best not in predictions:  # the solver is deterministic: equal choices give equal predictions
                predictions[best] = _logistic(train, val, best)
            accuracies.append((predictions[best] == label).float().mean())
            chosen.append({"seed": seed, "c": best, "held_out": max(scores)})
            confusion += torch.bincount(label * classes + predictions[best], minlength=classes**2).view(
                classes, classes
            )
        return _over_seeds("logistic", torch.stack(accuracies), chosen, confusion, len(val.label))


def split(features: Features, held_out: float, seed: int) -> tuple[Features, Features]:
    """Two random parts by sample (known duplicates together): the rest, and the held-out share."""
    units = torch.where(features.group >= 0, -1 - features.group, features.index)
    distinct, unit = torch.unique(units, return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    held = torch.isin(unit, order[: max(1, round(held_out * len(distinct)))])
    return features.subset(torch.nonzero(~held)[:, 0]), features.subset(torch.nonzero(held)[:, 0])


def _logistic(train: Features, test: Features, c: float) -> Tensor:
    x, y = train.flat()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    model = SklearnLogisticRegression(C=c, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(((x - mean) / std).numpy(), y.numpy())
    return torch.from_numpy(model.predict(((test.flat()[0] - mean) / std).numpy()))


def _over_seeds(
    name: str, accuracies: Tensor, chosen: list[dict[str, float]], confusion: Tensor, samples: int
) -> Result:
    std = accuracies.std().item() if len(accuracies) > 1 else 0.0
    details = {"std_over_seeds": std, "per_seed": accuracies.tolist(), "chosen": chosen}
    there = confusion.sum(1) > 0
    per_class = (confusion.diagonal() / confusion.sum(1))[there].mean().item()
    scores = {name: accuracies.mean().item(), f"{name}_per_class": per_class}
    return Result(scores, details, confusion, {name: 1 / len(confusion)}, {name: samples})
