"""The LightningDataModule over a set of shards: exact order, exact resume, views, normalisation on the device."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from viewshards.cache import ShardCache, is_remote, read
from viewshards.dataset import Sample, ShardDataset, collate
from viewshards.decode import Arrays, array
from viewshards.index import BrokenShard, atomic_write
from viewshards.limits import DEFAULT, Limits
from viewshards.loader import Loader, check_room
from viewshards.order import CellBatches, ClusterBatches, EvalBatches, TrainBatches, default_lanes
from viewshards.pictures import picture
from viewshards.shards import Manifest, ShardSet, changes
from viewshards.text import Captions
from viewshards.views import CentreCrop, MultiView, PlainViews, PointViews, Published, VideoViews, device
from viewshards.views.points import drawn

Batch = dict[str, Any]

logger = logging.getLogger(__name__)

PLACE = re.compile(r".*?, sample \d+(?=: )", re.DOTALL)
"""Of a broken sample, in the words in which it is named."""

CROP_MODES = {"shortest": "center", "longest": "border", "squash": "squash"}
"""Of `Published`, in timm's words."""


class ShardDataModule(pl.LightningDataModule):
    """Feeds views from shards made by `viewshards pack` or indexed by `viewshards index`.

    The batch is a dict. Views, by what samples are: `image`, a list of (B, 3, H, W), float and normalised once on the
    device; `points`, a list of (B, N, 3), in which rows of NaN are no points; `video`, a list of (B, T, 3, H, W), on
    request with `tracks`, (B, T, h, w) int64, the trajectory of each pixel, 0 for none. Beside them `index` (B,) the
    sample's stable number; `key`; `label` (B,), -1 unknown; `group` (B,), -1 or the number of a set of samples known to
    be the same; `weight` (B,), 0 for padding and for what stands in for an unreadable sample; `replaced`, what could
    not be read; `caption` where samples have a `.txt`; with `text` also `text`, a list of views (B, L) int64,
    `hard_text` (B, k, L) and `hard_present` (B, k) on request, and in evaluation `text_present` (B, M) and
    `text_unspoken` (B,), whether all captions that a sample has are in other languages; with `missing` `present`
    (B, V + texts), which views a sample has.

    Its state is what the optimiser consumed, not what a loader fetched ahead. It holds for every number of workers,
    and for every number of ranks that divides `lanes`.

    Args:
        root: folder or URL of the shards, which holds a `manifest.json`.
        global_batch_size: samples a step over all ranks.
        views: the augmented views of training; they say whether the samples are pictures, clouds or clips.
        eval_view: of pictures, the view of evaluation; default a centre crop of the first training view's size. Of
            published weights `Published`.
        natural_views: which of a sample's own views (`google` of `key.google.png`), in this order; default all.
        missing: train also on samples that lack some of `natural_views`, or captions, with an objective that knows what
            to do with them; needs `natural: ordered` views. Evaluation leaves these samples out.
        label: which label field: `cls`, or a field of the `.json` file that the manifest lists.
        fields: numeric fields of the samples' `.json` that go into the batch under their names, float32 (B, ...).
        text: captions as token ids, for methods that read them: `text`, a list of views (B, L).
        train_split: name of the split to train on. val_split: name of the split to evaluate on.
        seed: of order and augmentation.
        lanes: see `viewshards.order`; default the largest divisor of the global batch up to 64.
        window: pieces whose samples are shuffled together.
        clusters: a `.npz` file of `keep_numbers`, or a `.npy` file, with a cluster for each training sample: every
            global batch is then of one cluster.
        cells: such a file (C, S) with samples that shall meet in a batch, a row a cell; see `viewshards.order`.
        cell_samples: how many samples of a cell; default all S.
        workers: loader processes of each rank; default its share of the cores, at most 16.
        timeout: seconds without a batch after which the run ends and names the shard; only with workers.
        limits: how large a picture, an array, a number in a file may be.
        accept_changed_data: go on with a checkpoint, cells or clusters of other data than this, with a warning.
        max_broken: share of the split's samples that may be unreadable before the run stops with their list.
        cache_dir: node-local folder for shards of a URL. cache_gb: its bound.
        mean: of each band (RGB), what is subtracted, of [0, 1]. std: what is divided by.
    """

    def __init__(
        self,
        root: str,
        global_batch_size: int,
        views: MultiView | PointViews | VideoViews,
        eval_view: CentreCrop | Published | None = None,
        natural_views: list[str] | None = None,
        missing: bool = False,
        label: str = "cls",
        fields: Sequence[str] = (),
        text: Captions | None = None,
        train_split: str = "train",
        val_split: str = "val",
        seed: int = 0,
        lanes: int | None = None,
        window: int = 4,
        clusters: str | None = None,
        cells: str | None = None,
        cell_samples: int | None = None,
        workers: int | None = None,
        timeout: float = 900.0,
        limits: Limits = DEFAULT,
        accept_changed_data: bool = False,
        max_broken: float = 0.001,
        cache_dir: str | None = None,
        cache_gb: float = 100.0,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        is_remote(root)  # refuses what no root may be
        self.root, self.global_batch_size, self.views = root, global_batch_size, views
        self.plain = views.plain() if eval_view is None else PlainViews(eval_view)
        self.natural_views, self.label, self.fields, self.text = natural_views, label, list(fields), text
        self.train_split, self.val_split = train_split, val_split
        self.seed, self.lanes, self.window = seed, lanes or default_lanes(global_batch_size), window
        self.clusters, self.workers, self.max_broken, self.missing = clusters, workers, max_broken, missing
        self.cells, self.cell_samples = cells, cell_samples
        self.timeout, self.limits, self.accept_changed_data = timeout, limits, accept_changed_data
        for name, value, is_right, expected in (
            ("timeout", timeout, timeout > 0, "seconds, more than 0"),
            ("global_batch_size", global_batch_size, global_batch_size >= 1, "1 or more"),
            ("window", window, window >= 1, "1 or more"),
            ("lanes", lanes, lanes is None or lanes >= 1, "1 or more"),
            ("workers", workers, workers is None or workers >= 0, "0 or more"),
            ("max_broken", max_broken, 0 <= max_broken <= 1, "a share, in [0, 1]"),
            ("cache_gb", cache_gb, cache_gb > 0, "more than 0"),
            ("cell_samples", cell_samples, cell_samples is None or cell_samples >= 1, "1 or more"),
        ):
            if not is_right:
                raise ValueError(f"data.{name}: expected {expected}, got {value}")
        self.cache = ShardCache(cache_dir, int(cache_gb * 2**30)) if cache_dir and is_remote(root) else None
        if cache_dir and not is_remote(root):
            logger.warning("data.cache_dir is not used: %s is a folder, and its shards are read where they lie", root)
        if cell_samples is not None and not cells:
            raise ValueError("data.cell_samples says how many samples of a cell are taken: give data.cells")
        if eval_view is not None and not isinstance(views, MultiView):
            raise ValueError(f"data.eval_view is of pictures, and data.views are {type(views).__name__}: leave it out")
        self.mean, self.std = mean, std
        self.position = {"epoch": 0, "consumed": 0}
        self._numbers: dict[str, NDArray[np.int64]] = {}
        self.broken: dict[str, str] = {}
        """Samples that could not be read, by their place, and why."""
        if missing and (natural_views is None or getattr(views, "natural", "ordered") != "ordered"):
            raise ValueError(
                "missing wants natural_views, and views with natural: ordered: view v is then the v-th of them"
            )
        if clusters and cells:
            raise ValueError("give clusters or cells: each decides alone what meets in a batch")
        if global_batch_size % self.lanes:
            raise ValueError(
                f"global_batch_size ({global_batch_size}) must be a multiple of lanes ({self.lanes}): every step "
                f"takes global_batch_size / lanes samples of each lane"
            )

    @cached_property
    def manifest(self) -> Manifest:
        """What the set says of itself."""
        return Manifest.load(self.root)

    @cached_property
    def train_set(self) -> ShardSet:
        """The shards trained on, without the samples that `data.text.leave_out` leaves out."""
        found = ShardSet(self.root, self.train_split, self.cache, self.limits)
        if self.text is not None and self.text.leave_out:
            before, left_out = len(found), found.leave_out(self.text.languages)
            if left_out == before:
                raise ValueError(self._untold(found, left_out))
            if left_out:
                what = f"no caption in {', '.join(self.text.languages)}"
                logger.warning(
                    "%s: %d of %d samples of %s are left out: %s", self.root, left_out, before, found.split, what
                )
        return found

    @cached_property
    def val_set(self) -> ShardSet:
        """The shards evaluated on."""
        return ShardSet(self.root, self.val_split, self.cache, self.limits)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch: the samples that do not fill a step are left out, others each epoch."""
        return len(self._train_batches(1, 0))

    @property
    def classes(self) -> list[str]:
        """Names of the label's classes, by number; empty if the set does not name them."""
        return self.manifest.labels.get(self.label, [])

    def setup(self, stage: str) -> None:
        """Checks shards and arithmetic before anything trains, and hooks the position into the trainer."""
        if stage != "fit" or self.trainer is None:
            return
        if (
            getattr(self.trainer._accelerator_connector, "use_distributed_sampler", False)
            and self.trainer.world_size > 1
        ):
            raise ValueError("ShardDataModule orders its samples itself: set trainer.use_distributed_sampler to false")
        self._check_languages()
        self._check_arithmetic(self.trainer.world_size)
        if not any(isinstance(callback, _Position) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            self.trainer.callbacks.insert(0, _Position(self))  # type: ignore[attr-defined]  # before any checkpoint is saved

    def _check_languages(self) -> None:
        """Raises ValueError if samples trained on have no caption in a language that is asked for; warns of val's."""
        if self.text is None or not self.text.languages:
            return
        if not self.text.leave_out and not self.missing:
            self._check_trained()
        if self.val_split in self.manifest.splits and self.val_split != self.train_split:
            counts = [shard.lacking(self.text.languages) or 0 for shard in self.val_set.shards]
            if sum(counts):
                logger.warning("%s", self._untold(self.val_set, sum(counts)).partition(". ")[0])

    def _check_trained(self) -> None:
        assert self.text is not None
        lacking = [shard.lacking(self.text.languages) for shard in self.train_set.shards]
        if None in lacking:
            asked = ", ".join(self.text.languages)
            logger.warning(
                "%s: not known which samples lack captions in %s, since its manifest does not count languages: "
                "`viewshards index` counts them (without --fast)", self.root, asked,
            )  # fmt: skip
        elif count := sum(filter(None, lacking)):
            raise ValueError(self._untold(self.train_set, count))

    def _untold(self, shards: ShardSet, count: int) -> str:
        assert self.text is not None
        asked, samples = self.text.languages, sum(shard.samples for shard in shards.shards)
        known = sorted(
            {each for shard in shards.shards for names in shard.languages or {} for each in names.split("+")}
        )
        others, ways = [each for each in known if each not in asked], []
        if others:
            ways.append(f"name others for them, the best first: --data.text.language '[{', '.join(asked + others)}]'")
        if count < samples:
            ways.append("leave them out: --data.text.leave_out true")
        said = f"its captions are in {', '.join(known)}" if known else "no caption there says its language"
        return (
            f"{self.root} split {shards.split!r}: {count} of {samples} samples have no caption in {', '.join(asked)} "
            f"(data.text.language); {said}. {', or '.join(ways) or 'Leave data.text.language out'}"
        )

    def _check_arithmetic(self, world: int) -> None:
        batch, lanes, samples = self.global_batch_size, self.lanes, len(self.train_set)
        if lanes % world:
            fitting = [d for d in range(1, batch + 1) if batch % d == 0 and d % world == 0]
            raise ValueError(
                f"{world} ranks cannot share {lanes} lanes evenly ({lanes} / {world} = {lanes / world:.2f}). "
                + (
                    f"Set data.lanes to one of {fitting[:8]}: divisors of {batch}, multiples of {world}"
                    if fitting
                    else f"Set data.global_batch_size ({batch}) to a multiple of {world}"
                )
            )
        if samples // lanes < batch // lanes:
            raise ValueError(
                f"{self.root} split {self.train_split!r} has {samples} samples, fewer than one global batch of {batch}"
                f": give --data.global_batch_size {samples}, or less"
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """The training batches of this rank, from the position on."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        batches = self._train_batches(world, rank)
        batches.epoch, batches.consumed = self.position["epoch"], self.position["consumed"]
        names = self.natural_views, self.label, self.fields
        dataset = ShardDataset(self.train_set, self.views, self.seed, *names, self.text, self.missing)
        workers, ranks = self._processes()
        if workers and not self.train_set.remote:  # of which no shard should be fetched for a look
            check_room(dataset, self.global_batch_size // world, workers, ranks)
        return Loader(dataset, batches, workers, keep=True, timeout=self.timeout)

    def example(self) -> Sample:
        """A batch of the first training sample, by the views of training, read here and now."""
        names = self.natural_views, self.label, self.fields
        dataset = ShardDataset(self.train_set, self.views, self.seed, *names, self.text, self.missing)
        return collate([dataset[(0, 0)]])

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation batches of this rank; padding has weight 0."""
        return self.evaluation_loader(self.val_split)

    def evaluation_loader(
        self, split: str | ShardSet, batch_size: int = 256, world: int | None = None, rank: int | None = None
    ) -> DataLoader[Sample]:
        """Every sample of a split once, un-augmented, each natural view a view; the last batch is padded (weight 0).

        Args:
            split: `train` and `val` stand for the splits this module trains and evaluates on; or any other name; or
                `train_set`, of whose samples `data.text.leave_out` leaves some out.
            batch_size: per rank.
            world, rank: default those of the trainer, or of one process.
        """
        shards = self.shards_of(split)
        if world is None or rank is None:
            world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        names = self.natural_views, self.label
        dataset = ShardDataset(shards, self.plain, self.seed, *names, text=self.text, missing=self.missing)
        workers, ranks = self._processes()
        if workers and self.trainer is None and not shards.remote:  # in training other loaders have taken their part
            check_room(dataset, batch_size, workers, ranks)
        return Loader(dataset, EvalBatches(len(shards), batch_size, world, rank), workers, False, self.timeout)

    def shards_of(self, split: str | ShardSet) -> ShardSet:
        """The shards of a whole split; `train` and `val` stand for those this module trains and evaluates on."""
        if isinstance(split, ShardSet):
            return split
        name = {"train": self.train_split, "val": self.val_split}.get(split, split)
        if name == self.val_split:
            return self.val_set
        if name == self.train_split and not (self.text is not None and self.text.leave_out):
            return self.train_set
        return ShardSet(self.root, name, self.cache, self.limits)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(n, L) ids of n texts by the tokenizer of training: for prompts.

        Raises:
            ValueError: if this module feeds no texts.
        """
        if self.text is None:
            raise ValueError("this data has no tokenizer: set data.text to viewshards.Captions")
        return torch.from_numpy(self.text.tokens(texts))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Bytes to normalised floats on the device, and the colour of the `device` backend; clouds are ready."""
        if "video" in batch:
            mean, std = (
                batch["video"][0].new_tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (self.mean, self.std)
            )
            return {**batch, "video": [view.float().div_(255).sub_(mean).div_(std) for view in batch["video"]]}
        if "image" not in batch:
            return batch
        bands = batch["image"][0].shape[1]
        if not bands == len(self.mean) == len(self.std):
            raise ValueError(
                f"pictures of {bands} bands, data.mean has {len(self.mean)} numbers and data.std {len(self.std)}: give "
                "one for each band, and the backbone in_chans"
            )
        if "draws" in batch and bands != 3:
            raise ValueError(f"backend: device makes colours, and pictures have {bands} bands: set backend: cv2")
        images: list[Tensor] = [image.float().div_(255) for image in batch["image"]]
        if "draws" in batch:
            assert isinstance(self.views, MultiView)
            triples = zip(images, batch.pop("draws"), self.views.augmentations, strict=True)
            images = [device.colour(image, draws, augmentation) for image, draws, augmentation in triples]
        mean, std = (images[0].new_tensor(x).view(-1, 1, 1) for x in (self.mean, self.std))
        return {**batch, "image": [image.sub_(mean).div_(std) for image in images]}

    def as_pictures(self, view: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to look at: images, of many bands three, clouds drawn, four frames of clips."""
        if view.ndim == 5:
            places = torch.linspace(0, view.shape[1] - 1, min(4, view.shape[1])).long()
            view = torch.cat(list(view[:, places, :3].unbind(1)), 3)
        if view.ndim == 3:
            drawings = [torch.from_numpy(drawn(cloud)) for cloud in view.detach().float().cpu().numpy()]
            return torch.stack(drawings).permute(0, 3, 1, 2) / 255
        mean, std = (view.new_tensor(x).view(-1, 1, 1) for x in (self.mean, self.std))
        pictures: Tensor = (view * std + mean).clamp(0, 1)
        bands = pictures.shape[1]
        if bands == 2:
            return torch.cat([pictures, torch.zeros_like(pictures[:, :1])], 1)
        return pictures.expand(-1, 3, -1, -1) if bands == 1 else pictures[:, :3]

    def picture(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """A picture from a file, by the decoder of training: (H, W, 3) bytes.

        Raises:
            OSError: without the file. ValueError: if it does not decode.
        """
        data = read(str(path), self.limits.file_bytes)
        try:
            return picture(data, self.limits)
        except Exception as error:  # damaged pictures fail in their own ways
            raise ValueError(f"{path}: not a readable picture ({error})") from error

    def of_picture(self, picture: NDArray[np.uint8]) -> Tensor:
        """One picture (H, W, 3) as evaluation sees it: (1, 3, size, size), normalised.

        Raises:
            ValueError: if this module feeds no pictures.
        """
        if not isinstance(self.plain, PlainViews):
            raise ValueError("these shards hold no pictures")
        view = torch.from_numpy(self.plain.transform(picture).copy()).permute(2, 0, 1)[None]
        seen: Tensor = self.on_after_batch_transfer({"image": [view]}, 0)["image"][0]
        return seen

    def preprocessing(self) -> dict[str, Any]:
        """What evaluation does to a picture, in timm's words; empty if these are no pictures."""
        if not isinstance(self.plain, PlainViews):
            return {}
        view = self.plain.transform
        return {
            "input_size": [len(self.mean), view.size, view.size],
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": getattr(view, "interpolation", "bilinear"),
            "crop_pct": view.size / view.resize,
            "crop_mode": CROP_MODES[getattr(view, "mode", "shortest")],
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in. Rank-free."""
        return {**self._frame(), **self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a position.

        Raises:
            ValueError: if it is a position in another order, naming each difference.
        """
        frame = self._frame()
        different = [
            f"{name}: checkpoint {state_dict.get(name)}, now {mine}"
            for name, mine in frame.items()
            if name != "shards" and state_dict.get(name) != mine
        ]
        if different:
            raise ValueError(
                "this run cannot continue the checkpoint's order of samples; " + "; ".join(different) + ". Give the "
                "original values, or start a new run"
            )
        before = state_dict.get("shards")
        self._compare(before if isinstance(before, dict) else {}, frame["shards"], "the checkpoint")
        epoch, consumed = state_dict["epoch"], state_dict["consumed"]
        if consumed >= self.steps_per_epoch * self.global_batch_size:  # saved on the last batch of an epoch
            epoch, consumed = epoch + 1, 0
        self.position = {"epoch": epoch, "consumed": consumed}

    def _frame(self) -> dict[str, Any]:
        return {
            "shards": {split: shards.fingerprint for split, shards in self._read_in_training().items()},
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "lanes": self.lanes,
            "window": self.window,
            **{
                name: hashlib.sha256(self.numbers(path).tobytes()).hexdigest()[:16]
                for name, path in (("clusters", self.clusters), ("cells", self.cells))
                if path
            },
            **({"cell_samples": self.cell_samples} if self.cell_samples else {}),
            **({"synonyms": self.text.synonyms()} if self.text is not None and self.text.synonyms() else {}),
        }

    def _read_in_training(self) -> dict[str, ShardSet]:
        """The shards that training and its evaluation read, by split, as far as they are there."""
        named = {self.val_split: "val_set", self.train_split: "train_set"}
        return {split: getattr(self, name) for split, name in named.items() if split in self.manifest.splits}

    def _compare(self, before: dict[str, Any], now: dict[str, Any], what: str) -> None:
        """Raises ValueError if `before` was made on other data than `now`, in words; or warns, if that is accepted."""
        found = [
            f"{split}: {', '.join(words)}"
            for split, mine in now.items()
            if split in before and (words := changes(before[split], mine))
        ]
        found += [f"{split}: not in it" for split in now if split not in before]
        if found and not self.accept_changed_data:
            raise ValueError(
                f"{what} is of other data than {self.root} holds now; {'; '.join(found)}. Give the original shards, or "
                "accept what is there now: --data.accept_changed_data true"
            )
        if found:
            logger.warning("%s is of other data than %s holds now, as accepted; %s", what, self.root, "; ".join(found))

    def keep_numbers(self, path: str | os.PathLike[str], numbers: NDArray[np.int64]) -> None:
        """Writes cells or clusters of the training samples, with what these samples are.

        Raises:
            ValueError: for a name that does not end in .npz.
        """
        if Path(path).suffix != ".npz":
            raise ValueError(f"{path}: expected a name that ends in .npz")
        shards = json.dumps({self.train_split: self.train_set.fingerprint}).encode()
        with atomic_write(path) as f:
            np.savez(f, numbers=numbers, shards=np.frombuffer(shards, np.uint8))

    def numbers(self, path: str | os.PathLike[str]) -> NDArray[np.int64]:
        """Cells or clusters of the training samples, from a `.npz` of `keep_numbers`, or a `.npy` of one's own.

        Raises:
            ValueError: if it holds no whole numbers, or is of other data.
        """
        if str(path) in self._numbers:
            return self._numbers[str(path)]
        data = read(str(path))
        try:
            if Path(path).suffix == ".npz":
                arrays = Arrays(data, self.limits)
                found, shards = arrays["numbers"], json.loads(arrays["shards"].tobytes())
            else:
                found, shards = array(data, self.limits), None
        except Exception as error:  # damaged archives fail in their own ways
            raise ValueError(f"{path}: not readable as .npy or .npz of numbers ({error})") from error
        if found.dtype.kind not in "iu" or found.ndim not in (1, 2):
            raise ValueError(f"{path}: expected whole numbers (samples,) or (C, S), got {found.shape} of {found.dtype}")
        if isinstance(shards, dict):
            self._compare(shards, {self.train_split: self.train_set.fingerprint}, str(path))
        else:
            logger.warning("%s does not say of which samples it is: taken as of %s", path, self.root)
        self._numbers[str(path)] = found.astype(np.int64)
        return self._numbers[str(path)]

    def _train_batches(self, world: int, rank: int) -> TrainBatches:
        frame = self.train_set.counts, self.global_batch_size, self.lanes, self.window, self.seed, world, rank
        if self.clusters:
            return ClusterBatches(self.numbers(self.clusters), *frame)
        if self.cells:
            cells = self.numbers(self.cells)
            return CellBatches(cells, self.cell_samples or cells.shape[-1], *frame)
        return TrainBatches(*frame)

    def _processes(self) -> tuple[int, int]:
        """Loader processes of each rank, and ranks of this node."""
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", self.trainer.num_devices if self.trainer else 1))
        share = min(16, max(1, len(os.sched_getaffinity(0)) // ranks))
        return share if self.workers is None else self.workers, ranks

    def count_broken(self, problems: Sequence[str]) -> None:
        """Remembers samples that could not be read; raises BrokenShard with their list when they are too many."""
        for problem in problems:
            place = PLACE.match(problem)
            self.broken.setdefault(place[0] if place else problem, problem)
        if len(self.broken) > self.max_broken * len(self.train_set):
            listed = "\n  ".join(list(self.broken.values())[:20])
            raise BrokenShard(
                f"{len(self.broken)} of {len(self.train_set)} samples of {self.root} cannot be read, more than "
                f"max_broken = {self.max_broken:g}. `viewshards verify {self.root}` lists them all:\n  {listed}"
            )


class _Position(pl.Callback):
    """Moves the data module's position when the optimiser has consumed a batch."""

    def __init__(self, data: ShardDataModule) -> None:
        self.data = data

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.current_epoch != self.data.position["epoch"]:
            self.data.position = {"epoch": trainer.current_epoch, "consumed": 0}
        for problem in batch["replaced"]:
            if problem not in self.data.broken.values():
                logger.warning("replaced by its successor: %s", problem)
        self.data.count_broken(batch["replaced"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.data.position["consumed"] += self.data.global_batch_size

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_last_batch:  # else stopped inside, by max_time or should_stop: the rest is still to come
            self.data.position = {"epoch": trainer.current_epoch + 1, "consumed": 0}
