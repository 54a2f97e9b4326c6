"""A protocol and its result: no number without how it came about."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from manyviews.backbones import views_of
from manyviews.evaluation.features import Features
from manyviews.runs.files import write_text
from manyviews.runs.folder import provenance


@dataclass
class Result:
    """What a protocol found.

    Attributes:
        scores: by name, in [0, 1] unless the name says otherwise.
        details: what stands beside them: chosen hyper-parameters, deviations over seeds, sizes.
        confusion: (C, C) counts, rows true classes, if the protocol classifies.
        chance: of some scores what guessing reaches.
        trials: of how many samples some scores are a share. Views of one sample count once, since they are not
            independent.
    """

    scores: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    confusion: Tensor | None = None
    chance: dict[str, float] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each score that is a share of samples: of 100 such about 95 hold the true share."""
        return {name: wilson(self.scores[name], trials) for name, trials in self.trials.items()}


def wilson(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval (Wilson, 1927) of a share, in [0, 1], of one or more independent trials."""
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def chance_at(right: Tensor, items: int, k: int) -> float:
    """The share of queries that find one of their right items among k drawn from all, without putting back.

    Args:
        right: (queries,) how many of the `items` are right for each, one or more.
    """
    places = torch.arange(min(k, items), dtype=torch.float64)
    missed = (items - right.double().cpu()[:, None] - places).clamp(min=0) / (items - places)
    return (1 - missed.prod(1)).mean().item()


class Protocol(ABC):
    """Frozen features in, numbers out. A dataclass whose fields are the protocol."""

    name: ClassVar[str]
    labels: ClassVar[bool] = True
    """Whether samples must have labels."""
    views: ClassVar[int] = 1
    """How many natural views samples must have."""
    learns: ClassVar[bool] = True
    """Whether it reads train: a bank, a training set, what a choice is made by."""
    joint: ClassVar[bool] = False
    """Whether it asks the towers of an image-text method (see `JointProtocol`), not frozen features alone."""

    @property
    def title(self) -> str:
        """What a result is filed under: the name, and what tells one setting of the protocol from another."""
        return self.name

    def ready(self, module: Any, data: Any) -> None:
        """Raises ValueError before anything is computed if the method or the data cannot be measured."""
        train, val = (getattr(data, name, name) for name in ("train_split", "val_split"))
        if self.learns and train == val:
            raise ValueError(
                f"{type(self).__name__} learns from the split {train!r} and is measured on {val!r}: name another split "
                "(--split, data.val_split)"
            )

    def check(self, batch: dict[str, Any]) -> None:
        """Raises ValueError if a batch of the data shows that the protocol cannot be evaluated on it."""
        if self.labels and not (batch["label"] >= 0).any():
            raise ValueError(f"{type(self).__name__} needs labels, and the data has none (label -1 in a whole batch)")
        if len(views_of(batch)) < self.views:
            raise ValueError(
                f"{type(self).__name__} needs samples with {self.views} or more natural views, these have "
                f"{len(views_of(batch))}"
            )

    @abstractmethod
    def evaluate(self, train: Features, val: Features) -> Result:
        """Uses `train` as bank or training set (and for every choice), `val` once."""

    def describe(self) -> dict[str, Any]:
        """The protocol in plain types."""
        assert is_dataclass(self)
        return {"protocol": type(self).__name__, **asdict(self)}

    def settings(self) -> str:
        """What tells this protocol from the one with all defaults: six hexadecimal digits, empty if nothing does."""
        assert is_dataclass(self)
        changed = [each.name for each in fields(self) if _default(each) != getattr(self, each.name)]
        return digest(self.describe()) if changed else ""


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if callable(each.default_factory) else each.default


def digest(value: Any) -> str:
    """Six hexadecimal digits of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:6]


def result_path(run: Path, protocol: Protocol, data: Any, step: int) -> Path:
    """`RUN/evaluations/TITLE[-SETTINGS]-SHARDS[-CONTENTS]-LABEL-step-N.json`.

    SETTINGS are six digits of those that are not the default; CONTENTS six of what the shards hold, since there may be
    others in a folder of the same name.
    """
    shards = str(data.root).rstrip("/").rpartition("/")[2]
    if (holds := fingerprint(data, "val")) is not None:
        shards += f"-{digest(holds)}"
    title = "-".join(part for part in (protocol.title, protocol.settings()) if part)
    return run / "evaluations" / f"{title}-{shards}-{data.label}-step-{step:08d}.json"


def about(data: Any, step: int) -> dict[str, Any]:
    """What stands beside every number: data, splits, features, versions, commit."""
    return {
        "step": step,
        "data": data.root,
        "label": data.label,
        "splits": {"train": data.train_split, "val": data.val_split},
        "shards": {split: fingerprint(data, split) for split in ("train", "val")},
        "features": "backbone, pooled, eval mode, float32",
        **provenance(),
    }


def fingerprint(data: Any, split: Any) -> Any:
    """What a split of a data module holds, as its shards say; None if it has none, or does not say."""
    try:
        return data.shards_of(split).fingerprint
    except (AttributeError, ValueError):
        return None


def save(path: Path, protocol: Protocol, result: Result, about: dict[str, Any]) -> None:
    """Writes scores, details, protocol and provenance to a JSON file."""
    content = {"scores": result.scores, "protocol": protocol.describe(), "details": result.details, **about}
    intervals = {name: list(ends) for name, ends in result.intervals().items()}
    content |= {name: value for name, value in (("chance", result.chance), ("interval_95", intervals)) if value}
    if protocol.joint:
        content["features"] = "the method's own space, eval mode, float32"
    write_text(path, json.dumps(content, indent=1) + "\n")


def need_labels(protocol: str, train: Features, val: Features) -> tuple[Features, Features]:
    """The labelled samples of both, or an error that says what is missing."""
    train, val = train.labelled(), val.labelled()
    if not len(train.label) or not len(val.label):
        raise ValueError(
            f"{protocol} needs labels in both splits: {len(train.label)} train, {len(val.label)} val have one"
        )
    return train, val
