"""What a source of samples is, and what several kinds of them need."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from viewshards.account import Account, printable, system_file

SPLITS = ("train", "val", "test")
VAL_FRACTION = 0.1
"""Share of the samples that becomes `val` where a source has no splits and nobody says otherwise."""


class Source(ABC):
    """Samples to pack.

    Attributes:
        name: of the data set; shards are called `name-split-000000.tar`.
        samples: (key, split) of each sample; keys are unique, without dots.
        labels: class names by label field (`cls`, or a field of the samples' `.json`).
        roots: the folder whose files they are, if it is one, and those that links in it lead to.
        options: what the user said of it, by the names of the options.
    """

    roots: Sequence[Path] = ()
    options: Mapping[str, Any] = {}

    name: str
    samples: list[tuple[str, str]]
    labels: dict[str, list[str]]

    @property
    def account(self) -> Account:
        """What became of everything that was found, but for what is packed; a copy."""
        return Account("samples", len(self.samples))

    @abstractmethod
    def files(self, sample: int) -> dict[str, bytes]:
        """Contents by extension of one sample."""

    def read(self, sample: int) -> tuple[dict[str, bytes], Sequence[str]]:
        """Contents by extension of one sample, and what a user should know of how they were read."""
        return self.files(sample), ()

    def parts(self, sample: int) -> tuple[str, list[str]]:
        """What of the account a sample is: `packed` or `frames`, and the names."""
        return "packed", [self.samples[sample][0]]

    def fingerprint(self) -> str:
        """Changes when the listing does; tells a pack that goes on from one of something else."""
        return hashlib.sha256(json.dumps([self.name, self.samples, self.labels]).encode()).hexdigest()[:16]

    def times(self) -> str:
        """Changes when one of its files is written; where it stays, their contents are taken to be the same."""
        return ""


def times_of(paths: Iterable[Path]) -> str:
    """A hash of when these files were written."""
    return hashed([path.stat().st_mtime_ns for path in paths])


def hashed(value: object) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def hashed_split(key: str, val_fraction: float | None) -> str:
    """`train` or `val`, by a hash of the key."""
    share = int(hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()[:8], 16) / 2**32
    return "val" if share < (VAL_FRACTION if val_fraction is None else val_fraction) else "train"


def unique(names: Iterable[str]) -> list[str]:
    """Keys: printable, no dot in them (WebDataset cuts there), no key twice."""
    keys: dict[str, None] = {}
    for name in names:
        parts = printable(name).replace(".", "_").replace(" ", "_").lstrip("/").split("/")
        wanted = key = "/".join(f"{part}_" if system_file(part) else part for part in parts)  # which no index takes
        number = 1
        while key in keys:
            number += 1
            key = f"{wanted}-{number}"
        keys[key] = None
    return list(keys)
