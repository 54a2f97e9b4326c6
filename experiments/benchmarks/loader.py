"""Samples a second from shards against webdataset's own reader, and the time to resume inside a million samples.

    python experiments/benchmarks/loader.py [--json experiments/results/loader.json]

Part 1: raw bytes and integer labels of one set of shards, read by both, one process, CPU time, interleaved, best of
rounds; webdataset shuffles with a buffer of 1,000. Part 2: a set of 1,000,000 samples in 1,000 shards (real index and
manifest, tars that are sparse files) is opened, the first global batch after the middle of an epoch is found, and its
4,096 samples are read; wall time.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from record import record

from viewshards import index as indices
from viewshards.decode import decode
from viewshards.index import BLOCK, Index
from viewshards.order import TrainBatches
from viewshards.shards import Manifest, Shard, ShardSet


def write_shards(folder: Path, shards: int, samples: int, size: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.bytes(size)
    for s in range(shards):
        with webdataset.TarWriter(str(folder / f"set-train-{s:06d}.tar"), encoder=False) as tar:
            for i in range(samples):
                tar.write({"__key__": f"{s:04d}{i:06d}", "cls": str(i % 1000).encode(), "jpg": data})


def ours(folder: Path) -> Callable[[], int]:
    def epoch() -> int:
        shards = ShardSet(str(folder), "train")
        count = 0
        for batch in TrainBatches(shards.counts, 256, 64, 4, 0, 1, 0):
            for _, sample in batch:
                files = shards.read(sample)
                decode("cls", files["cls"])
                count += len(files["jpg"]) > 0
        return count

    return epoch


def theirs(folder: Path) -> Callable[[], int]:
    def epoch() -> int:
        urls = sorted(map(str, folder.glob("*.tar")))
        reader = webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).decode(only=["cls"])
        return sum(len(sample["jpg"]) > 0 for sample in reader)

    return epoch


def resume(samples: int, shards: int) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as name:
        each, size = samples // shards, 4096
        places = np.empty((each, 1, 3), np.int64)
        places[:, 0, 0] = np.arange(each) * size + BLOCK  # behind its header, which is zeros here
        places[:, 0, 1:] = 64, zlib.crc32(bytes(BLOCK))
        keys = np.array([b"%08d" % i for i in range(each)])
        index = Index(each * size, keys, ["txt"], places)
        entries = []
        for s in range(shards):  # a tar of the right size that takes no room, and a real index with its checksum
            tar = Path(name) / f"big-train-{s:06d}.tar"
            with open(tar, "wb") as f:
                f.truncate(index.bytes)
            indices.save(index, indices.path_of(str(tar)))
            beside = hashlib.sha256(Path(indices.path_of(str(tar))).read_bytes()).hexdigest()
            contents = {"keys": beside, ".txt": beside}  # any hashes: what counts is that they are looked at
            entries.append(Shard(tar.name, index.bytes, each, beside, beside, contents))
        Manifest("big", {"train": entries}).save(name)
        started = time.perf_counter()
        found = ShardSet(name, "train")
        batches = TrainBatches(found.counts, 4096, 64, 4, 0, 1, 0)
        batches.epoch, batches.consumed = 3, len(batches) // 2 * 4096
        first = next(iter(batches))
        for _, sample in first:
            found.read(sample)
        return time.perf_counter() - started, len(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1000, help="per shard")
    parser.add_argument("--size", type=int, default=20_000, help="bytes of a picture")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from viewshards.tars import build_index

    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, arguments.shards, arguments.samples, arguments.size)
        build_index(folder)
        for _ in range(arguments.rounds):
            for label, epoch in (("webdataset, buffer 1,000", theirs(folder)), ("ours, full order", ours(folder))):
                started = time.process_time()
                count = epoch()
                seconds = (time.process_time() - started) / count
                best[label] = min(seconds, best.get(label, seconds))
    peer = best["webdataset, buffer 1,000"]
    for label, seconds in best.items():
        print(f"{label:<28}{1 / seconds:>10.0f} samples/s/core  {peer / seconds:>5.1f}x")
    wall, first = resume(1_000_000, 1_000)
    print(f"resume at the middle of 1,000,000 samples: {wall:.3f} s to have read the first global batch of {first}")
    record(arguments.json, {"samples_per_second": {k: 1 / v for k, v in best.items()}, "resume_seconds": wall})


if __name__ == "__main__":
    main()
