"""torch's DataLoader, with an end to every wait: it says which shard it waits for, and what the system lacks."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from viewshards.dataset import Sample, ShardDataset, collate, prepare_worker, start_worker
from viewshards.order import EvalBatches, TrainBatches

PREFETCHED = 4
"""Batches that each loader process has ready."""
SHARED = Path("/dev/shm")


class Loader(DataLoader[Sample]):
    """Batches of a set of shards.

    Args:
        dataset: whose samples. batches: which ones. workers: processes. keep: whether they outlive an epoch.
        timeout: seconds without a batch after which the wait ends with an error.
    """

    def __init__(
        self, dataset: ShardDataset, batches: TrainBatches | EvalBatches, workers: int, keep: bool, timeout: float
    ) -> None:
        if workers == 0:
            prepare_worker()
        dataset.reading = multiprocessing.RawArray("q", [-1] * workers) if workers else None
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=start_worker,
            persistent_workers=keep and workers > 0,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=torch.cuda.is_available(),
            timeout=timeout if workers else 0,
            generator=torch.Generator(),  # else every new iterator draws from the RNG that dropout uses
        )

    def __iter__(self) -> Any:
        return _Named(super().__iter__(), self)

    def where(self) -> str:
        """Which shards the loader processes are reading at the moment."""
        dataset = self.dataset
        assert isinstance(dataset, ShardDataset)
        samples = [sample for sample in dataset.reading or () if sample >= 0]
        paths = {dataset.shards.path(dataset.shards.locate(sample)[0]): sample for sample in samples}
        return ", ".join(f"{path} (sample {sample})" for path, sample in sorted(paths.items())) or "none"


class _Named:
    """The batches of a Loader; what ends the wait for one is told in one line."""

    def __init__(self, batches: Iterator[Any], loader: Loader) -> None:
        self.batches, self.loader = batches, loader

    def __iter__(self) -> _Named:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.batches)
        except RuntimeError as error:
            if "timed out" in str(error):
                raise TimeoutError(
                    f"no batch for {self.loader.timeout:g} s (data.timeout); loaders are reading "
                    f"{self.loader.where()}: is the file system or the server still there?"
                ) from error
            if "DataLoader worker" in str(error):
                reason = str(error).partition("\n")[0]
                raise OSError(
                    f"a loader process died ({reason}) while loaders were reading {self.loader.where()}; was memory or "
                    f"{SHARED} full? data.workers 0 does without processes"
                ) from error
            raise


def check_room(dataset: ShardDataset, batch_size: int, workers: int, ranks: int) -> None:
    """Looks whether the batches that loaders have ready fit into shared memory, and their files under the limit.

    Args:
        dataset: whose first sample says how large one is. batch_size: of a rank. workers: of a rank.
        ranks: of this node.

    Raises:
        OSError: saying what there is, what is needed, and which options help.
    """
    if not len(dataset):
        return
    arrays = [value for value in _arrays(dataset[0, 0]) if value.nbytes > 0]
    each = sum(array.nbytes for array in arrays) * batch_size
    held = workers * (PREFETCHED + 1)
    if SHARED.is_dir():
        room = os.statvfs(SHARED)
        free = room.f_bavail * room.f_frsize
        if each * held * ranks > free:
            fitting = math.floor(free / max(1, each * (PREFETCHED + 1) * ranks))
            raise OSError(
                f"{SHARED} has {free / 1e6:.0f} MB free, and {workers} loaders on each of {ranks} rank(s) of this node "
                f"need {each * held * ranks / 1e6:.0f} MB for batches of {each / 1e6:.1f} MB: set data.workers "
                + f"{fitting}"
                + (" (no processes)" if not fitting else ", or 0 for no processes")
                + ", or give the container more (--shm-size=16g)"
            )
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = held * (len(arrays) + 8) + 256
    is_limit = files != resource.RLIM_INFINITY and torch.multiprocessing.get_sharing_strategy() == "file_descriptor"
    if is_limit and files < needed:
        raise OSError(
            f"{files} files may be open at a time, and {workers} loaders need about {needed}: "
            f"`ulimit -n {2 * needed}`, or set data.workers to fewer or to 0"
        )


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _arrays(child)
