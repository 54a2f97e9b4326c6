"""Commands on a checkpoint, which says itself how it was made: `bring_up`, then one function a command."""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from PIL import Image

from manyviews import foreign
from manyviews.backbones import not_read, views_of
from manyviews.cli.errors import explain
from manyviews.evaluation import (
    KNN,
    Accuracy,
    Cost,
    FewShot,
    FewShotSVM,
    JointProtocol,
    LinearProbe,
    LinearSVM,
    LogisticRegression,
    Outliers,
    Protocol,
    Result,
    Retrieval,
    TextRetrieval,
    plots,
)
from manyviews.evaluation.callback import features_of
from manyviews.evaluation.features import Features
from manyviews.evaluation.protocol import about, digest, fingerprint, result_path, save
from manyviews.methods import ImageText, Method
from manyviews.monitoring import pictures
from manyviews.monitoring.board import watch
from manyviews.runs.files import printable, whole
from manyviews.runs.folder import RunFolder
from manyviews.runs.storage import load, newest_whole
from manyviews.similarity import unit

ROOM = 4 * 2**30
"""Bytes that building a method may take beside eight times its weights."""


@dataclass
class Trained:
    """A checkpoint brought to life.

    Attributes:
        method: with its weights, on the device. data: the data module it was trained with, or on other shards.
        checkpoint: its path. step: optimiser steps. run: the folder results go to. config: of the run.
    """

    method: Method
    data: Any
    checkpoint: Path
    step: int
    run: Path
    config: dict[str, Any]

    def features(self, split: Any) -> Features:
        """Features of a split, by its name or as a set of shards."""
        return features_of(self.method, self.data, split)

    def result(self, protocol: Protocol) -> Result:
        """What a protocol finds."""
        protocol.ready(self.method, self.data)
        if isinstance(protocol, JointProtocol):
            return protocol.measure(self.method, self.data)
        val = self.features("val")
        return protocol.evaluate(self.features("train") if protocol.learns else val, val)

    def about(self) -> dict[str, Any]:
        """What stands beside every number."""
        return {"checkpoint": str(self.checkpoint), **about(self.data, self.step)}


def bring_up(arguments: argparse.Namespace) -> Trained:
    """The checkpoint a command line names."""
    if arguments.checkpoint:
        checkpoint = Path(arguments.checkpoint)
    else:
        if not Path(arguments.run).is_dir():
            raise FileNotFoundError(f"{arguments.run}: no such run")
        newest = newest_whole(RunFolder(Path(arguments.run)).checkpoints)
        if newest is None:
            raise FileNotFoundError(f"{arguments.run}: no whole checkpoint in {arguments.run}/checkpoints")
        checkpoint = newest
    content = load(checkpoint)
    config = foreign_config(content, checkpoint)
    changes = {"root": getattr(arguments, "data", None), "label": getattr(arguments, "label", None)}
    changes |= {"workers": getattr(arguments, "workers", None), "val_split": getattr(arguments, "val_split", None)}
    settings = config["data"].setdefault("init_args", {})
    settings.update({key: value for key, value in changes.items() if value is not None})
    weights = sum(value.nbytes for value in content["state_dict"].values() if isinstance(value, torch.Tensor))
    with _bounded(ROOM + 8 * weights), not_read():
        method, data = instantiate(config, str(checkpoint))
    try:
        method.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = foreign.shortened(error)
        raise ValueError(f"{checkpoint}: its weights do not fit its configuration: {reason}") from error
    device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return Trained(method.to(device), data, checkpoint, int(content["global_step"]), run, config)


def foreign_config(content: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The configuration in a checkpoint, which may be anybody's, checked before anything of it is imported.

    Raises:
        ValueError: if there is none, or it is not such as a run writes. foreign.Untrusted: if it names a class that is
            not admitted.
    """
    if not isinstance(content.get(foreign.CONFIG_KEY), dict):
        raise ValueError(f"{checkpoint}: holds no configuration; it was not written by `manyviews fit`")
    if not isinstance(content.get("state_dict"), dict) or not isinstance(content.get("global_step"), int):
        raise ValueError(f"{checkpoint}: holds no weights or no step; it was not written by `manyviews fit`")
    config: dict[str, Any] = foreign.plain(content[foreign.CONFIG_KEY], str(checkpoint))
    for key, wanted in (("model", Method), ("data", pl.LightningDataModule)):
        foreign.check(config.get(key), wanted, f"{checkpoint}: {key}")
        given = config[key] if isinstance(config[key], dict) else {"class_path": config[key]}
        config[key] = {**given, "init_args": given.get("init_args") or {}}
    foreign.check(config.get("seed_everything"), int | bool | None, f"{checkpoint}: seed_everything")
    return config


def bounded(method: Method) -> AbstractContextManager[None]:
    """At most the memory that building a method like this one may take."""
    return _bounded(ROOM + 8 * sum(value.nbytes for value in method.state_dict().values()))


@contextmanager
def _bounded(extra: int) -> Iterator[None]:
    """Numbers in a foreign configuration can ask for any memory: at most `extra` bytes more than now are given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    now = int(status.read_text().split()[0]) * resource.getpagesize()
    most = now + extra if soft == resource.RLIM_INFINITY else min(soft, now + extra)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def instantiate(config: dict[str, Any], source: str = "configuration") -> tuple[Method, Any]:
    """A fresh method and data module, as a configuration describes them that is the user's own or was checked.

    Raises:
        ValueError: naming `source`, if they cannot be built.
    """
    pl.seed_everything(config.get("seed_everything") or 0, verbose=False)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    try:
        parsed = parser.parse_object({"model": config["model"], "data": config["data"]})
        ready: Namespace = parser.instantiate(parsed)
    except (foreign.Refused, OSError):
        raise
    except Exception as error:  # the parser has its own kind, and constructors given foreign numbers any
        raise ValueError(f"{source}: cannot be built: {explain(error)}") from error
    return ready.model, ready.data


def side_by_side(features: list[Features]) -> Features:
    """Features of one split by several encoders: each brought to unit length, then concatenated."""
    if len(features) == 1:
        return features[0]
    first = features[0]
    return replace(first, views=torch.cat([unit(each.views) for each in features], dim=2))


def probe(arguments: argparse.Namespace) -> None:
    """Linear probe, and logistic regression where the set is small."""
    linear = LinearProbe(epochs=arguments.epochs, seeds=tuple(range(arguments.seeds)))
    trained = bring_up(arguments)
    linear.ready(trained.method, trained.data)
    train, val = trained.features("train"), trained.features("val")
    protocols: list[Protocol] = [linear]
    logistic = LogisticRegression(seeds=linear.seeds)
    if len(train.label) * len(train.views) <= logistic.limit:
        protocols.append(logistic)
    for protocol in protocols:
        target = arguments.json
        if target and protocol is not linear:
            target = str(Path(target).with_name(f"{Path(target).stem}-{protocol.name}{Path(target).suffix}"))
        show(trained, protocol, protocol.evaluate(train, val), target)


def knn(arguments: argparse.Namespace) -> None:
    """kNN accuracy."""
    _show(bring_up(arguments), KNN(tuple(arguments.k), tuple(arguments.temperature)), arguments)


def svm(arguments: argparse.Namespace) -> None:
    """Linear SVM on all of train, or on few shots over folds."""
    if not arguments.ways and (arguments.shots or arguments.folds):
        raise ValueError("--shots and --folds are of the few-shot protocol: give --ways")
    protocol = (
        FewShotSVM(arguments.ways, arguments.shots or 10, c=arguments.c, folds=arguments.folds)
        if arguments.ways
        else LinearSVM(arguments.c)
    )
    _show(bring_up(arguments), protocol, arguments)


def accuracy(arguments: argparse.Namespace) -> None:
    """Accuracy of a classifier's own head."""
    _show(bring_up(arguments), Accuracy(), arguments)


def cost(arguments: argparse.Namespace) -> None:
    """Tokens, operations and time of the backbone."""
    _show(bring_up(arguments), Cost(), arguments)


def retrieve(arguments: argparse.Namespace) -> None:
    """Retrieval across natural views, or of images and their captions."""
    if arguments.pretrained:
        from manyviews.cli.joint import pretrained

        trained = pretrained(arguments)
    elif arguments.model:
        raise ValueError("--model says what a file of --pretrained is: leave it out")
    else:
        trained = bring_up(arguments)
    if isinstance(trained.method, ImageText):
        return _show(trained, TextRetrieval(bank=arguments.bank), arguments)
    if arguments.bank != "plain":
        raise ValueError(f"--bank is of methods that read texts, not of {type(trained.method).__name__}")
    return _show(trained, Retrieval(), arguments)


def fewshot(arguments: argparse.Namespace) -> None:
    """N-way K-shot classification."""
    protocol = FewShot(arguments.ways, arguments.shots, arguments.queries, transport=arguments.transport)
    _show(bring_up(arguments), protocol, arguments)


def outliers(arguments: argparse.Namespace) -> None:
    """Out-of-distribution detection against another data set."""
    trained = bring_up(arguments)
    Outliers().ready(trained.method, trained.data)
    other = {"data": arguments.other, "label": "cls", "val_split": None}
    stranger = bring_up(argparse.Namespace(**{**vars(arguments), **other}))
    result = Outliers().against(trained.features("train"), trained.features("val"), stranger.features("val"))
    result.details["other"] = arguments.other
    path = result_path(trained.run, Outliers(), trained.data, trained.step)
    name = f"{path.stem}-against-{Path(arguments.other).name}-{digest(fingerprint(stranger.data, 'val'))}.json"
    show(trained, Outliers(), result, arguments.json or str(path.with_name(name)))


def _show(trained: Trained, protocol: Protocol, arguments: argparse.Namespace) -> None:
    show(trained, protocol, trained.result(protocol), arguments.json)


def show(trained: Trained, protocol: Protocol, result: Result, target: str | None) -> None:
    """Prints the scores; protocol, scores and provenance go to a file, the confusion matrix to a picture."""
    path = Path(target) if target else result_path(trained.run, protocol, trained.data, trained.step)
    checkpoint = trained.checkpoint.resolve()
    if not target and checkpoint.is_file() and checkpoint.parent.name != "checkpoints":  # other runs' may lie beside
        path = path.with_name(f"{path.stem}-of-{checkpoint.stem}-{digest(str(checkpoint))}.json")
    save(path, protocol, result, trained.about())
    intervals, deviation = result.intervals(), result.details.get("std_over_seeds")
    for name, score in result.scores.items():
        said = [f"{name} {score:.4f}" + (f" +- {deviation:.4f}" if deviation is not None else "")]
        said += ["[{:.4f}, {:.4f}]".format(*intervals[name])] if name in intervals else []
        said += [f"chance {result.chance[name]:.4f}"] if name in result.chance else []
        print("  ".join(said))
    print(f"protocol and number: {path}")
    if result.confusion is not None:
        picture = path.with_suffix(".png")
        with whole(picture) as part:
            Image.fromarray(plots.confusion(result.confusion, trained.data.classes)).save(part)
        print(f"confusion matrix: {picture}")


def pixels_of(trained: Trained, split: str, indices: set[int], view: int) -> dict[int, Any]:
    """Natural view number `view` of some samples of a split, as (H, W, 3) bytes by index."""
    found: dict[int, Any] = {}
    for batch in trained.data.evaluation_loader(split):
        rows = [i for i, index in enumerate(batch["index"].tolist()) if index in indices]
        if rows:
            images = views_of(trained.data.on_after_batch_transfer(batch, 0))[view][rows]
            found |= dict(zip(batch["index"][rows].tolist(), pictures.to_pixels(images, trained.data), strict=True))
    return found


def embed(arguments: argparse.Namespace) -> None:
    """Features of a split to a file, or to TensorBoard's projector."""
    if not arguments.out and not arguments.projector:
        raise ValueError("give --out FILE (.npz or .parquet), or --projector")
    if arguments.out and Path(arguments.out).suffix not in (".npz", ".parquet"):
        raise ValueError(f"{arguments.out}: expected a name that ends in .npz or .parquet")
    trained = bring_up(arguments)
    features = trained.features(arguments.split)
    if arguments.out:
        with whole(Path(arguments.out)) as part:
            _write_features(part, features)
        views, samples, width = features.views.shape
        print(f"{arguments.out}: {samples} samples, {views} views, width {width}")
    if arguments.projector:
        from torch.utils.tensorboard import SummaryWriter

        names = trained.data.classes
        labels = [names[i] if 0 <= i < len(names) else str(i) for i in features.label.tolist()]
        with SummaryWriter(trained.run / "projector") as writer:
            rows = [list(map(printable, row)) for row in zip(features.key, features.file_name, labels, strict=True)]
            header = ["key", "file_name", "label"]
            writer.add_embedding(features.views[0], rows, metadata_header=header, global_step=trained.step)
        print(f"projector: {watch(trained.run / 'projector')}")


def _write_features(path: Path, features: Features) -> None:
    views = features.views.transpose(0, 1).numpy()  # (N, V, D)
    if path.suffix == ".npz":
        np.savez(
            path,
            features=views,
            label=features.label.numpy(),
            index=features.index.numpy(),
            shards=np.array(json.dumps(features.shards)),
            key=np.array(features.key, dtype=str),
            file_name=np.array(features.file_name, dtype=str),
        )
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: writing parquet needs pyarrow: pip install 'manyviews[parquet]'") from error
    columns: dict[str, Any] = {
        "key": features.key,
        "file_name": features.file_name,
        "index": features.index.numpy(),
        "label": features.label.numpy(),
        **{f"view{v}": list(views[:, v]) for v in range(views.shape[1])},
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def export(arguments: argparse.Namespace) -> None:
    """The backbone as safetensors, or the whole as an open_clip folder; loaded back and compared."""
    from manyviews.cli.export import export_backbone, export_open_clip

    trained = bring_up(arguments)
    batch = next(iter(trained.data.evaluation_loader("val", batch_size=8)))
    images = views_of(trained.data.on_after_batch_transfer(batch, 0))[0]
    if not arguments.open_clip:
        seen = trained.data.preprocessing()
        backbone = trained.method.get_submodule(trained.method.evaluated)
        lines = export_backbone(backbone, trained.config["model"], images, Path(arguments.out), seen)
    elif isinstance(trained.method, ImageText):
        lines = export_open_clip(trained.method, trained.data, images, Path(arguments.out))
    else:
        raise ValueError(f"--open-clip is for methods with texts, not for {type(trained.method).__name__}")
    for line in lines:
        print(line)
