"""Images with captions, decoded, augmented, tokenised: samples a second and core, against open_clip's own pipeline.

    python experiments/benchmarks/pairs.py [--images 200] [--json experiments/results/pairs.json]

JPEGs of 500x375 (as in augmentation.py) with captions are packed into a shard that both sides read. One thread, process
CPU time, interleaved rounds, best round. open_clip: webdataset's reader, PIL decode and the training transform of
`image_transform(224, is_train=True)`, its tokenizer, as its `get_wds_dataset` strings them together. Ours: the same
crop (scale 0.9 to 1, no flip) by OpenCV, the same tokenizer, bytes out for the device to normalise, full random order.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import open_clip
import torch
import webdataset
from augmentation import photographs
from PIL import Image
from record import record

from viewshards import Captions
from viewshards.dataset import ShardDataset
from viewshards.encoding import Encoding
from viewshards.order import TrainBatches
from viewshards.pack import pack
from viewshards.shards import ShardSet
from viewshards.sources import open_source
from viewshards.views import Augmentation, MultiView

WORDS = "large small red old wooden round boat house dog field under over sky water night".split()  # noqa: SIM905


def write(folder: Path, count: int) -> None:
    """A table of pictures and captions of ten words, packed."""
    photographs(folder / "photos", count)
    with open(folder / "captions.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["file_name", "caption", "split"])
        for i in range(count):
            caption = " ".join(WORDS[(i * 7 + k * (k + i)) % len(WORDS)] for k in range(10))
            writer.writerow([f"photos/{i:05d}.jpg", caption, "train"])
    pack(open_source(str(folder / "captions.csv")), folder / "shards", Encoding())


def ours(folder: Path) -> Callable[[], int]:
    shards = ShardSet(str(folder / "shards"), "train")
    views = MultiView([Augmentation(224, (0.9, 1.0), flip=0.0)])
    dataset = ShardDataset(shards, views, 0, None, "cls", text=Captions())
    dataset.text.tokens(["a"])  # the tokenizer is there

    def epoch() -> int:
        batches = TrainBatches(shards.counts, 8, 8, 4, 0, 1, 0)
        return sum(len(dataset[place]["text"]) for batch in batches for place in batch)

    return epoch


def rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def theirs(folder: Path) -> Callable[[], int]:
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    tars = sorted(map(str, (folder / "shards").glob("*.tar")))
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(tars),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(5000, initial=1000),
        webdataset.decode(webdataset.handle_extension("jpg", rgb), only=["jpg", "txt"]),
        webdataset.rename(image="jpg", text="txt"),
        webdataset.map_dict(image=transform, text=lambda text: tokenizer(text)[0]),
        webdataset.to_tuple("image", "text"),
    )  # fmt: skip
    return lambda: sum(len(text) > 0 for _, text in pipeline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), arguments.images)
        contestants = {"open_clip's pipeline": theirs(Path(name)), "ours": ours(Path(name))}
        for _ in range(arguments.rounds):
            for label, epoch in contestants.items():
                started = time.process_time()
                count = epoch()
                assert count >= arguments.images - 8, (label, count)
                seconds = (time.process_time() - started) / count
                best[label] = min(seconds, best.get(label, seconds))
    peer = best["open_clip's pipeline"]
    for label, seconds in best.items():
        print(f"{label:<24}{1000 * seconds:>8.2f} ms {1 / seconds:>8.0f} samples/s/core  {peer / seconds:>5.1f}x")
    record(arguments.json, {"milliseconds": {k: 1000 * v for k, v in best.items()}, "faster": peer / best["ours"]})


if __name__ == "__main__":
    main()
