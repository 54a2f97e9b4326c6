"""Out-of-distribution detection from frozen features, by the distance to the nearest class (as in PALM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import Protocol, Result, need_labels
from manyviews.similarity import unit


@dataclass
class Outliers(Protocol):
    """How well the Mahalanobis distance tells another data set's samples from val's. `train` has the class means.

    Attributes:
        shrinkage: of the shared covariance towards a multiple of the identity.
    """

    shrinkage: float = 0.01
    name = "outliers"

    def evaluate(self, train: Features, val: Features) -> Result:
        """Without another data set there is nothing to tell apart: use `against`."""
        raise ValueError("outlier detection needs a second data set: manyviews outliers --other FOLDER")

    def against(self, train: Features, val: Features, other: Features) -> Result:
        """AUROC, and the share of the others accepted where 95 % of val is (FPR95). Score: minus the distance."""
        train, val = need_labels("outliers", train, val)
        z, label = train.flat()
        z = unit(z).double()
        means = torch.stack([z[label == c].mean(0) for c in label.unique()])
        classes = torch.searchsorted(label.unique(), label)
        centred = z - means[classes]
        covariance = centred.T @ centred / len(z)
        eye = torch.eye(len(covariance), dtype=covariance.dtype)
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * covariance.trace() / len(eye) * eye
        root = torch.linalg.cholesky(torch.linalg.inv(covariance))
        inside, outside = (-torch.cdist(unit(f.flat()[0]).double() @ root, means @ root).amin(1) for f in (val, other))
        scores = {"outliers_auroc": auroc(inside, outside), "outliers_fpr95": fpr95(inside, outside)}
        return Result(scores, {"val": len(inside), "other": len(outside)})


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance that a sample from inside has the higher score."""
    truth = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    return float(roc_auc_score(truth.numpy(), torch.cat([inside, outside]).numpy()))


def fpr95(inside: Tensor, outside: Tensor) -> float:
    """Share of the outside scores at or above the threshold that 95 % of the inside scores reach."""
    ordered = inside.sort().values
    threshold = ordered[int(0.05 * len(ordered))]
    return float((outside >= threshold).double().mean())
