"""How the design behaves on 1 to 1,024 ranks, 10,000 shards and 10^9 samples, by simulation in one process.

    python experiments/benchmarks/scale.py [--json experiments/results/scale.json]

Order: the real `EpochOrder` and `TrainBatches`, for the first rank; nothing is read. Losses: the real objectives on one
rank whose gather stands for all of them (each of the others holds a copy of this rank's rows) and counts what would be
received. Peak memory is that of a process of its own. 64 images a rank, width 128. Times on one thread; what a network
adds is not in them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from torch import Tensor

from manyviews import objectives
from manyviews.distributed import Gather
from viewshards.index import Index
from viewshards.order import EpochOrder, TrainBatches
from viewshards.shards import OPEN_FILES

SHARDS, SAMPLES, A_RANK, WIDTH, WINDOW = 10_000, 10**9, 64, 128, 4
LOSSES: dict[str, tuple[int, Callable[[], Any]]] = {
    "NTXent": (2, lambda: objectives.NTXent(0.1)),
    "DCL": (2, lambda: objectives.DCL(0.1)),
    "MVDHEL, 4 views": (4, lambda: objectives.MVDHEL(0.5)),
    "CLIP": (2, objectives.CLIP),
    "SigLIP": (2, objectives.SigLIP),
    "BarlowTwins": (2, objectives.BarlowTwins),
    "VICReg": (2, objectives.VICReg),
}


class Counted(Gather):
    """One rank of many, the others holding the same rows. `received`: bytes that would come over the network."""

    def __init__(self, world: int) -> None:
        self.world, self.rank, self.received = world, 0, 0

    def sizes(self, n: int) -> list[int]:
        self.received += 8 * (self.world - 1)
        return [n] * self.world

    def concatenate(self, x: Tensor, sizes: list[int]) -> Tensor:
        self.received += (self.world - 1) * x.nbytes
        return x.repeat(self.world, *[1] * (x.dim() - 1))

    def sum(self, x: Tensor) -> Tensor:
        self.received += 2 * (self.world - 1) * x.nbytes // self.world  # a ring
        return x * self.world

    def shift(self, x: Tensor, length: int) -> Tensor:
        self.received += x.nbytes if self.world > 1 else 0
        return x


def order(world: int) -> dict[str, float]:
    """Of the first rank, and the balance over all of them."""
    counts = [SAMPLES // SHARDS] * SHARDS
    lanes = max(64, world)
    batch = lanes * A_RANK if world > 64 else A_RANK * world * max(1, 64 // (A_RANK * world))
    started = time.process_time()
    made = EpochOrder(counts, 0, 0, lanes, WINDOW)
    seconds = time.process_time() - started
    batches = TrainBatches(counts, batch, lanes, WINDOW, 0, world, 0)
    first = _until_first(batches)
    batches.set_epoch(1)
    batches.consumed = len(batches) // 2 * batch
    middle = _until_first(batches)
    last = TrainBatches(counts, batch, lanes, WINDOW, 0, world, world - 1)
    assert len(last) == len(batches), "ranks with different numbers of batches"
    shards = [
        _shards_of(made, r * lanes // world, (r + 1) * lanes // world) for r in range(0, world, max(1, world // 32))
    ]
    return {
        "global_batch": batch,
        "order_ms": seconds * 1000,
        "order_mb": (made.first.nbytes + made.length.nbytes + made.starts.nbytes) / 1e6,
        "first_batch_s": first,
        "resume_s": middle,
        "batches": len(batches),
        "shards_a_rank_min": min(shards),
        "shards_a_rank_max": max(shards),
    }


def _until_first(batches: TrainBatches) -> float:
    started = time.process_time()
    next(iter(batches))
    return time.process_time() - started


def _shards_of(made: EpochOrder, low: int, high: int) -> int:
    """How many shards the lanes [low, high) read from in the epoch."""
    a, b = np.searchsorted(made.starts, [low * made.lane_length, high * made.lane_length - 1], "right") - 1
    return len(np.unique(made.first[a : b + 1] // (SAMPLES // SHARDS)))


def index() -> dict[str, float]:
    """Of a shard of 100,000 images with a label, and of what a loader keeps open."""
    n = SAMPLES // SHARDS
    places = np.zeros((n, 2, 3), np.int64)
    one = Index(0, np.array([f"{i:09d}".encode() for i in range(n)]), ["jpg", "cls"], places)
    megabytes = (one.keys.nbytes + one.places.nbytes) / 1e6
    return {"shard_mb": megabytes, "loader_mb": megabytes * OPEN_FILES, "all_gb": megabytes * SHARDS / 1000}


def loss(name: str, world: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    views, make = LOSSES[name]
    objective, gather = make(), Counted(world)
    z = [torch.randn(A_RANK, WIDTH, requires_grad=True) for _ in range(views)]
    objective(z, gather=Counted(1)).backward()  # warm
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base, started = _peak_mb(), time.process_time()
    objective(z, gather=gather).backward()
    seconds, megabytes = time.process_time() - started, _peak_mb() - base
    rows = views * A_RANK * world
    answer.send(
        {"seconds": seconds, "mb": megabytes, "received_mb": gather.received / 1e6, "dense_gb": 4 * rows**2 / 1e9}
    )


def _peak_mb() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def cell(name: str, world: int) -> dict[str, float]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=loss, args=(name, world, there))
    process.start()
    found: dict[str, float] = here.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 256, 1024])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    orders, losses, held = {}, {}, index()
    print(f"{SHARDS:,} shards, {SAMPLES:,} samples")
    print(f"{'ranks':>6}{'order':>10}{'memory':>10}{'1st batch':>11}{'resume':>9}{'batches':>11}{'shards a rank':>16}")
    for world in arguments.ranks:
        o = orders[world] = order(world)
        print(
            f"{world:>6}{o['order_ms']:>7.1f} ms{o['order_mb']:>7.1f} MB{o['first_batch_s']:>9.2f} s"
            f"{o['resume_s']:>7.2f} s{o['batches']:>11,}{o['shards_a_rank_min']:>9}-{o['shards_a_rank_max']}"
        )
    print(
        f"index: {held['shard_mb']:.1f} MB a shard, {held['loader_mb']:.0f} MB for the {OPEN_FILES} that a loader has "
        f"open, {held['all_gb']:.0f} GB if all were held"
    )
    print(f"{'loss':<18}{'ranks':>6}{'time':>10}{'memory':>10}{'received':>12}{'rows x rows':>15}")
    for name in LOSSES:
        for world in arguments.ranks:
            c = losses[f"{name}, {world} ranks"] = cell(name, world)
            print(
                f"{name:<18}{world:>6}{c['seconds']:>8.2f} s{c['mb']:>7.0f} MB{c['received_mb']:>9.1f} MB"
                f"{c['dense_gb']:>12.3f} GB",
                flush=True,
            )
    record(arguments.json, {"order": orders, "index": held, "losses": losses})


if __name__ == "__main__":
    main()
