"""Two 224 px views of a JPEG from a shard: images a second and core, against lightly's SimCLRTransform, in one run.

    python experiments/benchmarks/augmentation.py [--images 200] [--json experiments/results/augmentation.json]

JPEGs of 500x375 are generated (smooth colours, edges, some noise; about 70 KB) and packed into a shard. One thread,
process CPU time, interleaved rounds, best round. Both sides do the same operations: decode, two random resized
crops, flip, jitter, grey, blur, and end with what their loaders hand on (ours uint8 for the device to normalise,
lightly's normalised floats). The decode floor is what no pipeline that decodes whole pictures can beat.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from record import record

from viewshards.dataset import ShardDataset
from viewshards.encoding import Encoding
from viewshards.pack import pack
from viewshards.shards import ShardSet
from viewshards.sources import Options, open_source
from viewshards.views import SimCLR


def photographs(folder: Path, count: int) -> None:
    """Pictures whose spectrum and size on disk are near a photograph's."""
    y, x = np.mgrid[0:375, 0:500] / 60.0
    for i in range(count):
        rng = np.random.default_rng(i)
        image = sum(
            np.stack([np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-f, f, (3, 3))], -1) * 60 / f
            for f in (1, 3, 9, 27)
        )
        image = image + 128 + rng.normal(0, 6, image.shape)
        for _ in range(6):
            top, left = rng.integers(0, 300), rng.integers(0, 400)
            image[top : top + rng.integers(20, 150), left : left + rng.integers(20, 150)] += rng.uniform(-80, 80, 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(image.clip(0, 255).astype(np.uint8), quality=91))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        photographs(Path(name) / "photos", arguments.images)
        pack(open_source(f"{name}/photos", Options(val_fraction=0.0)), Path(name) / "shards", Encoding())
        shards = ShardSet(f"{name}/shards", "train")
        contestants = _contestants(shards)
        best: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for label, work in contestants.items():
                started = time.process_time()
                for i in range(len(shards)):
                    work(i)
                seconds = (time.process_time() - started) / len(shards)
                best[label] = min(seconds, best.get(label, seconds))
        size = np.mean([len(shards.read(i)["jpg"]) for i in range(len(shards))]) / 1000
    print(f"{arguments.images} JPEGs of 500x375, mean {size:.0f} KB")
    print(f"{'':<34}{'ms/image':>9} {'img/s/core':>11} {'vs lightly':>11}")
    peer = best["lightly SimCLRTransform"]
    for label, seconds in best.items():
        print(f"{label:<34}{seconds * 1000:>9.2f} {1 / seconds:>11.0f} {peer / seconds:>10.1f}x")
    record(arguments.json, {"milliseconds": {k: v * 1000 for k, v in best.items()}, "mean_kb": size})


def _contestants(shards: ShardSet) -> dict[str, Callable[[int], object]]:
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=224)
    ours = {b: ShardDataset(shards, SimCLR(224, backend=b), 0, None, "cls") for b in ("cv2", "device", "torchvision")}

    def lightly(i: int) -> object:
        with Image.open(io.BytesIO(shards.read(i)["jpg"])) as image:
            return transform(image.convert("RGB"))

    return {
        "lightly SimCLRTransform": lightly,
        "ours, cv2": lambda i: ours["cv2"][0, i],
        "ours, device (colour left to it)": lambda i: ours["device"][0, i],
        "ours, torchvision (reference)": lambda i: ours["torchvision"][0, i],
        "decode alone (simplejpeg)": lambda i: simplejpeg.decode_jpeg(shards.read(i)["jpg"]),
    }


if __name__ == "__main__":
    main()
