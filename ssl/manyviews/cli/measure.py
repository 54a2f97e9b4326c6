"""What is measured of the runs of a study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from manyviews.cli.evaluate import bring_up, side_by_side
from manyviews.evaluation import (
    KNN,
    Composition,
    Cost,
    FewShotSVM,
    JointProtocol,
    LinearSVM,
    Protocol,
    Retrieval,
    TextRetrieval,
    ZeroShot,
)
from manyviews.evaluation.linear import COARSE_PROBE
from manyviews.methods import ImageText
from manyviews.monitoring import diagnostics


def measure(runs: list[Path], labels: list[str | None], banks: dict[str, str]) -> dict[str, Any]:
    """Scores of finished runs, their features side by side: kNN, linear probe, cross-view retrieval, and diagnostics.

    On point clouds also linear SVMs, on all and on few shots; of clips tokens, operations and time. Of an image-text
    method also retrieval of texts, zero-shot classification, and composition where there are cases. With several labels
    each is probed, and its scores end in `_LABEL`.

    Args:
        runs: folders. labels: fields, None the run's own. banks: of class names for zero-shot, by label field.
    """
    scores: dict[str, float] = {}
    for label in labels:
        trained = [
            bring_up(argparse.Namespace(checkpoint=None, run=str(run), device="auto", label=label)) for run in runs
        ]
        train, val = (side_by_side([each.features(split) for each in trained]) for split in ("train", "val"))
        protocols: list[Protocol] = [KNN(), COARSE_PROBE, *([Retrieval()] if len(val.views) > 1 else [])]
        if trained[-1].data.views.modality == "points":
            protocols += [LinearSVM(), FewShotSVM()]
        found = {name: value for p in protocols for name, value in p.evaluate(train, val).scores.items()}
        method, data = trained[-1].method, trained[-1].data
        joint: list[JointProtocol] = [Cost()] if data.views.modality == "video" else []
        if isinstance(method, ImageText):
            joint.append(TextRetrieval())
            if data.classes:
                joint.append(ZeroShot(banks.get(data.label, "plain")))
            if "composition" in data.manifest.splits:
                joint.append(Composition("composition"))
        found |= {name: value for p in joint for name, value in p.measure(method, data).scores.items()}
        protocols += joint
        found["rankme"] = diagnostics.rankme(val.views[0]).item()
        found["uniformity"] = diagnostics.uniformity(val.views[0]).item()
        found["tolerance"] = diagnostics.tolerance(val.views[0], val.label).item()
        scores |= {name if len(labels) == 1 else f"{name}_{label}": value for name, value in found.items()}
    return {"scores": scores, "step": trained[0].step, "protocols": [p.describe() for p in protocols]}
