"""What a source of samples is, and what several kinds of them need."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from viewshards.limits import DEFAULT, Limits
from viewshards.pictures import picture

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
SPLITS = ("train", "val", "test")


class Source(ABC):
    """Samples to pack.

    Attributes:
        name: of the data set; shards are called `name-split-000000.tar`.
        samples: (key, split) of each sample; keys are unique, without dots.
        labels: class names by label field (`cls`, or a field of the samples' `.json`).
        notes: what a user should know before packing.
        limits: how large what it reads may be.
    """

    notes: Sequence[str] = ()
    limits: Limits = DEFAULT

    name: str
    samples: list[tuple[str, str]]
    labels: dict[str, list[str]]

    @abstractmethod
    def files(self, sample: int) -> dict[str, bytes]:
        """Contents by extension of one sample."""

    def fingerprint(self) -> str:
        """Changes when the listing does; tells a pack that goes on from one of something else."""
        return hashlib.sha256(json.dumps([self.name, self.samples, self.labels]).encode()).hexdigest()[:16]

    def times(self) -> str:
        """Changes when one of its files is written; where it stays, their contents are taken to be the same."""
        return ""


def times_of(paths: Iterable[Path]) -> str:
    """A hash of when these files were written; of a folder, the files in it."""
    files = [each for path in paths for each in ([path] if path.is_file() else sorted(path.iterdir()))]
    return hashlib.sha256(json.dumps([path.stat().st_mtime_ns for path in files]).encode()).hexdigest()[:16]


def files_below(root: Path, extensions: frozenset[str]) -> list[Path]:
    """All files of these kinds, in order; tracks (NAME.traj.npz) belong to clips."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in extensions and not path.name.endswith(".traj.npz") and path.is_file()
    ]


def image_file(path: Path, limits: Limits = DEFAULT) -> tuple[str, bytes]:
    """Extension and contents; formats that shards do not hold become PNG."""
    extension = path.suffix.lower().removeprefix(".")
    limits.check("file_bytes", path.stat().st_size, "bytes of a file")
    if extension in ("jpg", "jpeg", "png", "webp"):
        return extension, path.read_bytes()
    return "png", png(Image.fromarray(picture(path.read_bytes(), limits)))


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def hashed_split(key: str, val_fraction: float) -> str:
    """`train` or `val`, by a hash of the key."""
    share = int(hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()[:8], 16) / 2**32
    return "val" if share < val_fraction else "train"


def unique(names: Iterable[str]) -> list[str]:
    """Keys: no dot in them (WebDataset cuts there), and no key twice."""
    keys: dict[str, None] = {}
    for name in names:
        wanted = key = name.replace(".", "_").replace(" ", "_")
        number = 1
        while key in keys:
            number += 1
            key = f"{wanted}-{number}"
        keys[key] = None
    return list(keys)
