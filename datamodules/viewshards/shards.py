"""A set of shards: its manifest, its sample ids, and the bytes of each sample by random access."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from viewshards import index as indices
from viewshards.cache import ShardCache, is_remote, read
from viewshards.index import BrokenShard, Index, atomic_write

MANIFEST = "manifest.json"
FORMAT = 1
OPEN_FILES = 64


@dataclass(frozen=True)
class Shard:
    """One tar of a set: file name in the set's folder, size in bytes, number of samples, sha256 (None: not known)."""

    file: str
    bytes: int
    samples: int
    sha256: str | None = None


@dataclass
class Manifest:
    """What a set of shards says of itself (`manifest.json`).

    Attributes:
        name: of the set.
        splits: shards by split (`train`, `val`, ...), in the order that numbers the samples.
        labels: class names by label field: `cls` for the `.cls` file, others for fields of the `.json` file.
        made: how the set was made, as its maker likes to say it.
    """

    name: str
    splits: dict[str, list[Shard]]
    labels: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def save(self, root: str | os.PathLike[str]) -> None:
        """Writes `root/manifest.json`, whole or not at all."""
        with atomic_write(Path(root) / MANIFEST) as f:
            f.write(json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode())

    @classmethod
    def load(cls, root: str) -> Manifest:
        """Reads the manifest of a set.

        Raises:
            FileNotFoundError: if there is none, saying how to make one.
            ValueError: if it is not one of ours.
        """
        path = f"{root.rstrip('/')}/{MANIFEST}"
        try:
            content = json.loads(read(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: not there. Make shards with `viewshards pack SOURCE {root}`, "
                f"or index WebDataset tars that are there already with `viewshards index {root}`"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: not readable as JSON ({error})") from error
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"{path}: not a manifest of format {FORMAT}; make it again with `viewshards index {root}`")
        content["splits"] = {name: [Shard(**s) for s in shards] for name, shards in content["splits"].items()}
        return cls(**content)


class ShardSet:
    """One split of a set of shards. Samples are numbered 0 ... len - 1 in the manifest's order.

    Args:
        root: folder or URL of the set.
        split: which split.
        cache: where shards of a URL are kept; required for a URL.

    Raises:
        ValueError: for an unknown split.
        BrokenShard: if a local shard is missing or has not the size the manifest gives.
    """

    def __init__(self, root: str, split: str, cache: ShardCache | None = None) -> None:
        self.root, self.split, self.cache = root.rstrip("/"), split, cache
        self.remote = is_remote(root)
        if self.remote and cache is None:
            raise ValueError(f"{root}: shards of a URL need a node-local cache_dir")
        self.manifest = Manifest.load(root)
        if split not in self.manifest.splits:
            raise ValueError(f"{root}: no split {split!r}; it has {', '.join(sorted(self.manifest.splits))}")
        self.shards = self.manifest.splits[split]
        self.counts = [shard.samples for shard in self.shards]
        self.ends = np.cumsum(self.counts)
        names = json.dumps([(shard.file, shard.samples) for shard in self.shards])
        self.fingerprint = hashlib.sha256(names.encode()).hexdigest()[:16]
        self._open: OrderedDict[int, tuple[int, Index]] = OrderedDict()
        if not self.remote:
            self._check_sizes()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files do not travel to workers

    def key(self, sample: int) -> str:
        """The key of a sample."""
        shard, position = self.locate(sample)
        return self._reader(shard)[1].key(position)

    def read(self, sample: int) -> dict[str, bytes]:
        """The files of a sample: bytes by extension.

        Raises:
            BrokenShard: if the shard ends before the file does.
        """
        shard, position = self.locate(sample)
        descriptor, index = self._reader(shard)
        files = {}
        for extension, (offset, size) in index.files(position).items():
            data = os.pread(descriptor, size, offset)
            if len(data) < size:
                raise BrokenShard(f"{self.path(shard)}: ends inside .{extension} of {index.key(position)}")
            files[extension] = data
        return files

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard number and position in it."""
        shard = int(np.searchsorted(self.ends, sample, "right"))
        return shard, sample - int(self.ends[shard]) + self.counts[shard]

    def path(self, shard: int) -> str:
        """Path or URL of a shard."""
        return f"{self.root}/{self.shards[shard].file}"

    def _reader(self, shard: int) -> tuple[int, Index]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1][0])
        path, index_path = self.path(shard), indices.path_of(self.path(shard))
        if self.remote and self.cache is not None:
            descriptor = self.cache.open(path, self.shards[shard].bytes)
            index = self.cache.read(index_path, indices.load)
        else:
            descriptor, index = os.open(path, os.O_RDONLY), indices.load(index_path)
        if index.bytes != self.shards[shard].bytes or len(index) != self.shards[shard].samples:
            os.close(descriptor)
            raise BrokenShard(
                f"{index_path}: belongs to another tar; make it again with `viewshards index {self.root}`"
            )
        self._open[shard] = descriptor, index
        return self._open[shard]

    def _check_sizes(self) -> None:
        problems = []
        for number, shard in enumerate(self.shards):
            try:
                found = Path(self.path(number)).stat().st_size
            except FileNotFoundError:
                problems.append(f"{self.path(number)} is missing")
                continue
            if found != shard.bytes:
                problems.append(f"{self.path(number)} has {found} bytes, the manifest says {shard.bytes}")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise BrokenShard("; ".join(problems[:5]) + more)
