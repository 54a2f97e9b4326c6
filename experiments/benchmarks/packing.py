"""Packing small files and photographs, beside a loop with WebDataset's writer and litdata's `optimize`, in one run.

    python experiments/benchmarks/packing.py [--small 20000] [--photos 2000] [--json experiments/results/packing.json]

Small files are PNGs of 32 px in 20 class folders, photographs are generated JPEGs of 500x375 (some 70 KB). All read and
store the bytes as they are, with the class beside them. Ours also lists the folder, decodes every file so that nothing
broken gets in, hashes contents, writes an index and an account; WebDataset's loop and litdata's copy bytes unseen. Ours
and litdata's work in as many processes as there are cores, WebDataset's writer in one. Interleaved rounds, best round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from augmentation import photographs
from PIL import Image
from record import record
from rich.console import Console

from viewshards.pack import pack
from viewshards.sources import open_source

CORES = len(os.sched_getaffinity(0))


def small(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"c{i % 20:02d}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)


def listed(folder: Path) -> list[tuple[str, int]]:
    classes = sorted(path.name for path in folder.iterdir())
    return [(str(path), classes.index(path.parent.name)) for path in sorted(folder.glob("*/*"))]


def ours(folder: Path, out: Path) -> None:
    pack(open_source(str(folder)), out, shard_mb=20, workers=CORES, console=Console(quiet=True))


def writer(folder: Path, out: Path) -> None:
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/x-%06d.tar", maxsize=20e6, verbose=0) as sink:
        for path, label in listed(folder):
            extension = path.rpartition(".")[2]
            sink.write({"__key__": Path(path).stem, extension: Path(path).read_bytes(), "cls": str(label).encode()})


def sample(item: tuple[str, int]) -> dict[str, Any]:
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def litdata(folder: Path, out: Path) -> None:
    from litdata import optimize

    optimize(sample, listed(folder), str(out), chunk_bytes="20MB", num_workers=CORES, mode="overwrite")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--photos", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ways: dict[str, Callable[[Path, Path], None]] = {"viewshards": ours, "webdataset": writer, "litdata": litdata}
    found: dict[str, Any] = {"cores": CORES}
    with tempfile.TemporaryDirectory() as name:
        folders = {"small": Path(name) / "small", "photographs": Path(name) / "photographs"}
        small(folders["small"], arguments.small)
        photographs(folders["photographs"] / "all", arguments.photos)
        for what, count in (("small", arguments.small), ("photographs", arguments.photos)):
            best: dict[str, float] = {}
            for _ in range(arguments.rounds):
                for way, make in ways.items():
                    out = Path(name) / "out"
                    shutil.rmtree(out, ignore_errors=True)
                    start = time.perf_counter()
                    make(folders[what], out)
                    best[way] = min(best.get(way, 1e9), time.perf_counter() - start)
            found[what] = {way: count / seconds for way, seconds in best.items()}
            for way, rate in found[what].items():
                against = rate / found[what]["webdataset"]
                print(f"{what:<12} {way:<11} {rate:9,.0f} samples a second  {against:5.2f} of webdataset's")
            print(f"{what:<12} viewshards  {found[what]['viewshards'] / CORES:9,.0f} a second and core")
    record(arguments.json, found)


if __name__ == "__main__":
    main()
