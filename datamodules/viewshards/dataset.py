"""Samples by number: bytes from the shards, decoded, turned into views, collated into a batch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from viewshards.decode import Picture, kind
from viewshards.index import BrokenShard
from viewshards.order import generator
from viewshards.sample import BANDS, FILES, BrokenSample, Contents, is_picture
from viewshards.shards import ShardSet
from viewshards.text import Captions
from viewshards.views import MultiView, PlainPoints, PlainVideo, PlainViews, PointViews, VideoViews

IN_A_ROW = 16
"""Neighbours tried for a broken sample before the run ends."""
FIRST = 32
"""Samples by which it is known what most have."""
AUGMENTATION, TEXT = 2, 3
"""Branches of the seed tree that pictures and texts draw from; 0 and 1 are the order's."""

Sample = dict[str, Any]


Render = MultiView | PlainViews | PointViews | PlainPoints | VideoViews | PlainVideo
"""Makes the views of one sample from its natural views, and the rows of the `device` backend, if any."""


class Incomplete(Exception):
    """A sample that lacks a view or a caption, where only complete ones count."""


class ShardDataset(Dataset[Sample]):
    """Sample (epoch, id) -> dict. Its random numbers come from (seed, epoch, id) alone, so workers cannot change it.

    A sample that cannot be read is replaced by its successor and named in the dict (`replaced`).

    Args:
        shards: where the samples lie.
        render: makes views of the natural views.
        seed: of the augmentations.
        natural_views: which natural views, in this order; None: all pictures (or clouds) of a sample, sorted by name.
        label: which label field of the manifest; unknown or absent labels are -1.
        fields: numeric fields of a sample's `.json`, of the same shape in all, that go along as float32.
        text: makes text views of the captions; None: no texts.

    Raises:
        ValueError: for a label field the set does not have.
        BrokenShard: when 16 samples in a row cannot be read.
    """

    def __init__(
        self,
        shards: ShardSet,
        render: Render,
        seed: int,
        natural_views: Sequence[str] | None,
        label: str,
        fields: Sequence[str] = (),
        text: Captions | None = None,
        missing: bool = False,
    ) -> None:
        self.fields, self.text, self.missing = list(fields), text, missing
        self.reading: Any = None
        """In shared memory the sample that each loader process is reading, -1 for none; a Loader sets it."""
        self.shards, self.render, self.seed = shards, render, seed
        self.render_tracks = bool(getattr(getattr(render, "views", render), "tracks", False))
        self.natural_views, self.label = natural_views, label
        known = shards.manifest.labels
        if label != "cls" and label not in known:
            raise ValueError(f"{shards.root}: no label field {label!r}; it has {', '.join(sorted(known)) or 'none'}")
        self.classes = {name: number for number, name in enumerate(known.get(label, []))}
        self.labels = tuple(known)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, wanted = place
        worker = get_worker_info()
        if self.reading is None or worker is None:
            return self._found(epoch, wanted)
        self.reading[worker.id] = max(0, wanted)
        try:
            return self._found(epoch, wanted)
        finally:
            self.reading[worker.id] = -1

    def _found(self, epoch: int, wanted: int) -> Sample:
        if wanted < 0:
            return self._blank(epoch)
        problems: list[str] = []
        for step in range(IN_A_ROW):
            sample = (wanted + step) % len(self)
            try:
                return {**self._load(epoch, sample), "weight": float(not problems), "replaced": problems}
            except Incomplete:
                return self._blank(epoch)
            except (BrokenSample, BrokenShard) as error:  # what the disk or the network do is no reason to go on
                problems.append(self._named(sample, error))
        raise BrokenShard(f"{IN_A_ROW} samples in a row cannot be read:\n" + "\n".join(problems))

    def _named(self, sample: int, error: Exception) -> str:
        shard, _ = self.shards.locate(sample)
        try:
            key = self.shards.key(sample)
        except (BrokenShard, OSError):  # its index is what is broken
            return f"{self.shards.path(shard)} sample {sample}: {error}"
        name = self._file_name(sample)
        return f"{self.shards.path(shard)} {key}{f' ({name})' if name else ''}, sample {sample}: {error}"

    def _file_name(self, sample: int) -> str:
        with contextlib.suppress(BrokenSample, BrokenShard, OSError):
            return Contents(self.shards.read(sample), self.shards.limits).file_name
        return ""

    def _blank(self, epoch: int) -> Sample:
        """Padding of an evaluation batch: the shape of a sample, nothing of its content."""
        for sample in range(len(self)):
            with contextlib.suppress(BrokenSample, BrokenShard, Incomplete):
                whole = self._load(epoch, sample)
                seen = [name for name in (self.render.modality, "tracks") if name in whole]
                views = {name: [np.zeros_like(view) for view in whole[name]] for name in seen}
                nothing = {
                    "index": -1,
                    "key": "",
                    "file_name": "",
                    "label": -1,
                    "group": -1,
                    "weight": 0.0,
                    "replaced": [],
                }
                return {**whole, **views, **nothing}
        raise BrokenShard(f"{self.shards.root}: no sample of {self.shards.split!r} can be read")

    def _load(self, epoch: int, sample: int) -> Sample:
        files = self.shards.read(sample)
        try:
            return self._made(epoch, sample, Contents(files, self.shards.limits, self.labels, self.shards.classes))
        except (Incomplete, BrokenSample):
            raise
        except Exception as error:  # a value that no check has foreseen and no view can use
            raise BrokenSample(str(error) or type(error).__name__) from error

    def _made(self, epoch: int, sample: int, contents: Contents) -> Sample:
        named = self._natural(contents.files)
        there = [bool(extension) for extension in named]
        plain = isinstance(self.render, PlainViews | PlainPoints | PlainVideo)
        if self.missing and plain and not (all(there) and (self.text is None or self.text.has(contents.fields))):
            raise Incomplete(f"{self.shards.key(sample)} lacks a view or a caption")
        rng = generator(self.seed, epoch, AUGMENTATION, sample)
        read = {"image": contents.picture, "points": contents.cloud, "video": contents.clip}[self.render.modality]
        natural: list[Any] = [read(extension) for extension in named if extension]
        if not all(there):  # something of the right shape, which `present` says is none
            natural = [natural[max(0, sum(there[: v + 1]) - 1)] for v in range(len(there))]
        if plain and self._first and len(natural) != self._first["views"]:  # else they could not be stacked
            raise BrokenSample(f"{len(natural)} natural views, most samples have {self._first['views']}")
        views: list[Any]
        if isinstance(self.render, VideoViews | PlainVideo):
            seen, draws = self.render(natural, rng)
            views = [frames for frames, _ in seen]
            moving = {"tracks": [ids for _, ids in seen]} if self.render_tracks else {}
        else:
            (views, draws), moving = self.render(natural, rng), {}
        out: Sample = {
            self.render.modality: views,
            **moving,
            "draws": draws,
            "index": sample,
            "key": self.shards.key(sample),
            "file_name": contents.file_name,
            "label": self._label(contents),
            "group": contents.group,
            **self._numbers(contents),
        }
        if contents.caption is not None:
            out["caption"] = contents.caption
        if self.text is not None and plain:
            out |= self.text.all(contents.fields)
        elif self.text is not None:
            rng = generator(self.seed, epoch, TEXT, sample)
            has_none = self.missing and not self.text.has(contents.fields)
            drawn = self.text.none() if has_none else self.text.draw(contents.fields, rng)
            out |= drawn if contents.group < 0 else {**drawn, "group": contents.group}
        if self.missing:
            texts = [self.text.has(contents.fields)] * len(out.get("text", [])) if self.text is not None else []
            out["present"] = np.array([there[v % len(there)] for v in range(len(views))] + texts)
        return out

    def _natural(self, files: Mapping[str, bytes]) -> list[str]:
        """Extensions of the files with the natural views, in order; with `missing` empty for those it lacks."""
        is_fitting = is_picture if self.render.modality == "image" else lambda e: kind(e) in FILES[self.render.modality]
        fitting = [e for e in sorted(files) if is_fitting(e)]
        if self.natural_views is not None and any(view in fitting for view in self.natural_views):
            named = {e: e for e in fitting}  # files are named in full
        else:
            named = {_view(e): e for e in fitting}
            if len(named) < len(fitting):
                raise BrokenSample(
                    f"several files for one view, .{', .'.join(fitting)}: name one by data.natural_views"
                )
        wanted = list(named) if self.natural_views is None else list(self.natural_views)
        missing = [view for view in wanted if view not in named]
        if self.missing and len(missing) < len(wanted):
            return [named.get(view, "") for view in wanted]
        if missing or not wanted:
            what = f"{self.render.modality} {', '.join(missing) or 'at all'}"
            raise BrokenSample(f"no {what}; it has {', '.join(sorted(files))}")
        return [named[view] for view in wanted]

    def _numbers(self, contents: Contents) -> dict[str, NDArray[np.float32]]:
        found = {name: contents.numbers(name) for name in self.fields}
        for name, value in found.items():
            if self._first and value.shape != self._first[name]:
                raise BrokenSample(f"field {name!r} is {value.shape}, in most samples {self._first[name]}")
        return found

    @cached_property
    def _first(self) -> dict[str, Any]:
        """How many natural views most of the first samples have, and the shapes of their fields."""
        found: list[tuple[tuple[str, Any], ...]] = []
        for sample in range(min(len(self), 1000)):
            with contextlib.suppress(BrokenSample, BrokenShard):
                contents = Contents(self.shards.read(sample), self.shards.limits, self.labels, self.shards.classes)
                fields = {name: contents.numbers(name).shape for name in self.fields}
                found.append(tuple({"views": len(self._natural(contents.files)), **fields}.items()))
            if len(found) == FIRST:
                break
        return dict(Counter(found).most_common(1)[0][0]) if found else {}

    def _label(self, contents: Contents) -> int:
        if kind(self.label) == "cls":
            return contents.number(self.label)
        return self.classes.get(str(contents.about.get(self.label)), -1)


def _view(extension: str) -> str:
    """The name of a view: `left` of `left.png` and of `left.bands.npy`, empty of `png`."""
    return extension.removesuffix(BANDS).rstrip(".") if extension.endswith(BANDS) else extension.rpartition(".")[0]


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Samples to a batch: views view-major, pictures each (B, 3, H, W) uint8, clouds (B, N, 3) float32, clips
    (B, T, 3, H, W) uint8, their trajectories (B, T, h, w) int64.

    Raises:
        ValueError: for samples with different numbers of views.
    """
    for name in STACKS.keys() & samples[0].keys():
        few, many = (pick(samples, key=lambda sample: len(sample[name])) for pick in (min, max))
        if len(few[name]) < len(many[name]):
            raise ValueError(
                f"{few['key']} has {len(few[name])} natural views, {many['key']} has {len(many[name])}: name those "
                "that every sample has by data.natural_views, or add --data.missing true for an objective that knows "
                "of missing views"
            )
    batch: dict[str, Any] = {
        **{
            name: [stack(views) for views in zip(*(s[name] for s in samples), strict=True)]
            for name, stack in STACKS.items()
            if name in samples[0]
        },
        "index": torch.tensor([s["index"] for s in samples]),
        "key": [s["key"] for s in samples],
        "file_name": [s["file_name"] for s in samples],
        "label": torch.tensor([s["label"] for s in samples]),
        "group": torch.tensor([s["group"] for s in samples]),
        "weight": torch.tensor([s["weight"] for s in samples]),
        "replaced": [problem for s in samples for problem in s["replaced"]],
    }
    for name, value in samples[0].items():
        if name not in batch and isinstance(value, np.ndarray):
            batch[name] = torch.from_numpy(np.stack([s[name] for s in samples]))
    if "text" in samples[0]:
        batch["text"] = [torch.from_numpy(np.stack(ids)) for ids in zip(*(s["text"] for s in samples), strict=True)]
    if samples[0]["draws"]:
        batch["draws"] = [torch.tensor(rows) for rows in zip(*(s["draws"] for s in samples), strict=True)]
    for name in ("caption", "captions", "cases"):
        if all(name in s for s in samples):
            batch[name] = [s[name] for s in samples]
    return batch


def _stack_pictures(images: Sequence[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _stack(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _stack_clips(clips: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()


STACKS = {"image": _stack_pictures, "points": _stack, "video": _stack_clips, "tracks": _stack}


GRACE = 30
"""Seconds between SIGTERM and SIGKILL by Slurm's default (KillWait)."""


def start_worker(_: int = 0) -> None:
    """First call in a loader process, which outlives the signals that tell the training process to stop.

    Ctrl-C and `timeout` signal the whole group, Slurm every process of a step. The trainer stops at a batch boundary
    and saves; a loader that died before would take that from it. So it leaves the group, and ends GRACE seconds after
    a SIGTERM if nobody ended it before; a loader whose training process is gone ends by itself. Torch looks at the
    parent for that, which for a loader of a forkserver is the server.
    """
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    prepare_worker()


def _end_with_the_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def prepare_worker() -> None:
    """One thread a worker: libraries that each start as many as there are cores slow all of them down."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
