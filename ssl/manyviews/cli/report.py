"""`manyviews report`: a run beside an untrained encoder and raw pixels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from manyviews.backbones import Encoding, Pixels, ShapeStatistics, not_read, views_of
from manyviews.cli.evaluate import Trained, bounded, bring_up, instantiate, pixels_of
from manyviews.distributed import LOCAL
from manyviews.evaluation import (
    KNN,
    LinearSVM,
    Protocol,
    Retrieval,
    TextRetrieval,
    ZeroShot,
)
from manyviews.evaluation.features import Features, prepared
from manyviews.evaluation.linear import COARSE_PROBE
from manyviews.evaluation.protocol import digest, fingerprint
from manyviews.internals import BatchNorm
from manyviews.methods import ImageText, Method
from manyviews.monitoring import pictures
from manyviews.monitoring.board import watch
from manyviews.runs.files import whole, write_text


class _Unlearnt(Method):
    """What can be read off the views without learning, in the place of a method."""

    def __init__(self, backbone: nn.Module) -> None:
        pl.LightningModule.__init__(self)
        self.backbone = backbone

    def embed(self, batch: dict[str, Any]) -> list[Encoding]:
        return [self.backbone(view) for view in views_of(batch)]


def report(arguments: argparse.Namespace) -> None:
    """Trained against untrained against raw pixels, in one table, and a run with texts beside; a picture of neighbours.

    An encoder that began with published weights also against these, if their file is there.

    Of methods with texts also zero-shot classification and the retrieval of images by their captions. In the place of
    pixels clouds have statistics of their shape, and a linear SVM beside; clips have the pixels of their mean frame.
    """
    trained = bring_up(arguments)
    with not_read():
        untrained, _ = instantiate(trained.config)
    device = trained.method.device
    name, floor = UNLEARNT[trained.data.plain.modality]
    rows = {
        "trained encoder": trained,
        **_began_with(trained),
        "untrained encoder": replace(trained, method=calibrated(untrained.to(device), trained.data)),
        name: replace(trained, method=_Unlearnt(floor()).to(device)),
    }
    if arguments.texts:
        beside = argparse.Namespace(**{**vars(arguments), "checkpoint": None, "run": arguments.texts})
        rows[f"with texts ({Path(arguments.texts).name})"] = bring_up(beside)
    if arguments.bank != "plain" and not any(isinstance(row.method, ImageText) for row in rows.values()):
        raise ValueError(f"--bank is of methods that read texts, not of {type(trained.method).__name__}")
    scores: dict[str, dict[str, float]] = {}
    described: dict[str, Any] = {}
    for name, row in rows.items():
        KNN().ready(row.method, row.data)
        train, val = row.features("train"), row.features("val")
        protocols: list[Protocol] = [KNN(), COARSE_PROBE, *([Retrieval()] if len(val.views) > 1 else [])]
        if row.data.plain.modality == "points":
            protocols.append(LinearSVM())
        scores[name] = {k: v for p in protocols for k, v in p.evaluate(train, val).scores.items()}
        if isinstance(row.method, ImageText):
            joint = [TextRetrieval(), *([ZeroShot(arguments.bank)] if row.data.classes else [])]
            scores[name] |= {k: v for p in joint for k, v in row.result(p).scores.items()}
            protocols += joint
        described |= {p.name: p.describe() for p in protocols}
        if name == "trained encoder":
            kept = train, val
    what = {
        "shards": fingerprint(trained.data, "val"), "label": trained.data.label, "protocols": described,
        "encoders": {name: [str(row.checkpoint), row.step] for name, row in rows.items()},
    }  # fmt: skip
    usual = not any(vars(arguments)[name] for name in ("data", "label", "texts", "val_split", "checkpoint"))
    name = (
        f"step-{trained.step:08d}" if usual and arguments.bank == "plain" else f"step-{trained.step:08d}-{digest(what)}"
    )
    picture = trained.run / f"neighbours-{name}.png"
    with whole(picture) as part:
        Image.fromarray(_neighbours(trained, *kept)).save(part)
    path = trained.run / "evaluations" / f"report-{name}.json"
    content = {"scores": scores, "protocols": list(described.values()), **trained.about()}
    write_text(path, json.dumps(content, indent=1) + "\n")
    _print_report(trained, scores)
    print(f"numbers:              {path}\nnearest neighbours:   {picture}")
    print(f"curves and pictures:  {watch(trained.run)}")


def _began_with(trained: Trained) -> dict[str, Trained]:
    """The encoder with the published weights that its training began with; nothing without such."""
    if trained.config.get("from") or not _has_weights(trained.config["model"]["init_args"].get("backbone")):
        return {}  # a parent's weights came after them
    try:
        with bounded(trained.method):
            method, _ = instantiate(trained.config)
    except (ValueError, OSError) as error:
        print(f"no row of the weights that training began with: {error}", file=sys.stderr)
        return {}
    return {"weights it began with": replace(trained, method=method.to(trained.method.device))}


def _has_weights(backbone: Any) -> bool:
    """Whether a backbone's configuration, or that of one inside it, names weights to begin with."""
    if isinstance(backbone, list | tuple):
        return any(map(_has_weights, backbone))
    if not isinstance(backbone, dict):
        return False
    is_exported = str(backbone.get("class_path", "")).endswith(".Exported")
    return is_exported or bool(backbone.get("checkpoint")) or any(map(_has_weights, backbone.values()))


UNLEARNT: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "image": ("raw pixels", Pixels),
    "points": ("shape statistics", ShapeStatistics),
    "video": ("pixels of the mean frame", Pixels),
}
"""What stands below an encoder in a report, by what it sees."""


@torch.no_grad()
def calibrated(method: Method, data: Any) -> Method:
    """A fresh method whose BatchNorm layers know the data: one pass over train without a step.

    Without it their running statistics would be those of no data at all, and random features worse than they are.
    """
    backbone = method.get_submodule(method.evaluated)
    if any(isinstance(module, BatchNorm) for module in backbone.modules()):
        for batch in prepared(method, data, "train", LOCAL):
            backbone.train()
            method.embed(batch)
    return method.eval()


COLUMNS = {
    "knn20": "kNN (k 20)",
    "linear": "linear probe",
    "svm": "linear SVM",
    "retrieval_r1": "cross-view R@1",
    "zeroshot_top1": "zero-shot",
    "t2i_r1": "text-image R@1",
}


def _print_report(trained: Trained, scores: dict[str, dict[str, float]]) -> None:
    table = Table(
        title=f"{trained.checkpoint} on {trained.data.root}, {trained.data.val_split}, label {trained.data.label}"
    )
    columns = [name for name in COLUMNS if any(name in row for row in scores.values())]
    table.add_column("")
    for column in columns:
        table.add_column(COLUMNS[column], justify="right")
    for name, row in scores.items():
        table.add_row(name, *(f"{row[column]:.3f}" if column in row else "-" for column in columns))
    Console(width=110).print(table)


def _neighbours(trained: Trained, train: Features, val: Features, queries: int = 12) -> Any:
    """Val images (view 0) and their nearest train images (last view: another drawing, where there is one)."""
    chosen = torch.linspace(0, len(val.index) - 1, min(queries, len(val.index))).long()
    wanted = pixels_of(trained, "val", set(val.index[chosen].tolist()), 0)
    nearest = torch.topk(_cosine(val.views[0][chosen], train.views[-1]), min(6, len(train.index)), 1).indices
    gallery = pixels_of(trained, "train", set(train.index[nearest.flatten()].tolist()), -1)
    rows = []
    for q, row in zip(chosen, nearest, strict=True):
        query = wanted[int(val.index[q])]
        gap = np.full((query.shape[0], 4, 3), 255, np.uint8)
        rows.append([query, gap, *(gallery[int(train.index[j])] for j in row)])
    sheet = pictures.grid(rows)
    factor = max(1, 96 // rows[0][0].shape[0])  # small drawings enlarged, without smoothing
    return np.repeat(np.repeat(sheet, factor, 0), factor, 1)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
