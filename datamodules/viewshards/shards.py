"""A set of shards: its manifest, its sample ids, and the bytes of each sample by random access."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewshards import index as indices
from viewshards.cache import ShardCache, is_remote, read
from viewshards.index import BrokenShard, Index, atomic_write
from viewshards.limits import DEFAULT, Limits
from viewshards.sample import languages_of

MANIFEST = "manifest.json"
FORMAT = 3
OPEN_FILES = 64
Fingerprint = dict[str, Any]
"""What a split holds: `samples`, `shards`, `classes`, and of `keys` and each kind of file a hash of the contents."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One tar of a set.

    Attributes:
        file: its path in the set's folder. bytes: its size. samples: how many.
        sha256: of the tar; None if it was indexed by `--fast`. index: sha256 of its index file; None: not known.
        contents: hashes of the keys (`keys`) and of the files of each kind (`.jpg`) in it; empty if not known.
        part: name of the part of its samples that is meant, which has an index of its own; None: all.
        languages: how many samples have captions in which languages, by their names with `+` between them; None: not
            known (indexed by `--fast`, or written by an earlier version).
    """

    file: str
    bytes: int
    samples: int
    sha256: str | None = None
    index: str | None = None
    contents: dict[str, str] = field(default_factory=dict)
    part: str | None = None
    languages: dict[str, int] | None = None

    def lacking(self, languages: Sequence[str]) -> int | None:
        """How many samples have no caption in any of some languages; None: not known."""
        if self.languages is None:
            return None
        return self.samples - sum(n for spoken, n in self.languages.items() if {*spoken.split("+")} & {*languages})


@dataclass
class Manifest:
    """What a set of shards says of itself (`manifest.json`).

    Attributes:
        name: of the set.
        splits: shards by split (`train`, `val`, ...), in the order that numbers the samples.
        labels: class names by label field: `cls` for the `.cls` file, others for fields of the `.json` file.
        made: how the set was made, as its maker likes to say it.
        named: label fields whose files hold the name of a class, where others hold its number.
    """

    name: str
    splits: dict[str, list[Shard]]
    labels: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)

    def save(self, root: str | os.PathLike[str]) -> None:
        """Writes `root/manifest.json`, whole or not at all, with a checksum of itself."""
        text = json.dumps({"format": FORMAT, "checksum": NO_CHECKSUM, **asdict(self)}, indent=1)
        with atomic_write(Path(root) / MANIFEST) as f:
            f.write(text.replace(NO_CHECKSUM, _sha256(text), 1).encode())

    @classmethod
    def load(cls, root: str) -> Manifest:
        """Reads the manifest of a set.

        Raises:
            FileNotFoundError: if there is none, saying how to make one.
            ValueError: if it is not one of ours, naming the key.
        """
        path = f"{root.rstrip('/')}/{MANIFEST}"
        try:
            content = json.loads(read(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: not there. Make shards with `viewshards pack SOURCE {root}`, "
                f"or index WebDataset tars that are there already with `viewshards index {root}`"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a manifest of format {FORMAT}; pack the set again, or index tars made by others again"
            )
        try:
            return cls._of({key: value for key, value in content.items() if key not in ("format", "checksum")})
        except ValueError as error:
            raise ValueError(f"{path}: {error}; make it again with `viewshards index {root}`") from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Manifest:
        known = {"name", "splits", "labels", "made", "named"}
        if content.keys() != known:
            raise ValueError(f"expected the keys {', '.join(sorted(known))}, got {', '.join(sorted(content))[:200]}")
        _expect(isinstance(content["name"], str), "name", "a text", content["name"])
        for key in ("splits", "labels", "made"):
            _expect(isinstance(content[key], dict), key, "an object", content[key])
        for name, classes in content["labels"].items():
            is_right = isinstance(classes, list) and all(isinstance(each, str) for each in classes)
            _expect(is_right, f"labels.{name}", "a list of texts", classes)
        is_right = isinstance(content["named"], list) and all(
            isinstance(each, str) and each in content["labels"] for each in content["named"]
        )
        _expect(is_right, "named", "a list of label fields", content["named"])
        splits = {}
        for split, shards in content["splits"].items():
            _expect(isinstance(shards, list), f"splits.{split}", "a list of shards", shards)
            splits[split] = [_shard(each, f"splits.{split}[{i}]") for i, each in enumerate(shards)]
            files = [shard.file for shard in splits[split]]
            if len(set(files)) < len(files):
                raise ValueError(f"splits.{split} names a shard twice")
        return cls(content["name"], splits, content["labels"], content["made"], content["named"])


NO_CHECKSUM = "0" * 64
SHA256 = re.compile(r"[0-9a-f]{64}")


def is_untouched(root: str | os.PathLike[str]) -> bool:
    """Whether a set's manifest is as it was written."""
    text = (Path(root) / MANIFEST).read_bytes().decode(errors="replace")
    found = re.search(r'"checksum": "([0-9a-f]{64})"', text)
    return found is not None and found[1] == _sha256(text.replace(found[1], NO_CHECKSUM, 1))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _expect(is_right: object, key: str, expected: str, value: Any) -> None:
    if not is_right:
        raise ValueError(f"{key}: expected {expected}, got {value!r:.200}")


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def _shard(content: Any, where: str) -> Shard:
    fields = Shard.__dataclass_fields__.keys()
    _expect(isinstance(content, dict) and content.keys() <= fields, where, f"keys of {', '.join(fields)}", content)
    for key in ("bytes", "samples"):
        number = content.get(key)
        is_right = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**62
        _expect(is_right, f"{where}.{key}", "a whole number", number)
    for key in ("sha256", "index"):
        value = content.get(key)
        _expect(value is None or _is_sha256(value), f"{where}.{key}", "a sha256", value)
    contents = content.get("contents", {})
    is_right = isinstance(contents, dict) and all(map(_is_sha256, contents.values()))
    _expect(is_right, f"{where}.contents", "hashes by kind of file", contents)
    part = content.get("part")
    is_right = part is None or (isinstance(part, str) and re.fullmatch(r"[\w-]+", part) is not None)
    _expect(is_right, f"{where}.part", "a name", part)
    spoken = content.get("languages")
    is_right = spoken is None or (isinstance(spoken, dict) and all(type(n) is int and n > 0 for n in spoken.values()))
    _expect(is_right, f"{where}.languages", "numbers of samples by language", spoken)
    file = content.get("file")
    is_inside = isinstance(file, str) and file.endswith(".tar") and "\0" not in file and "://" not in file
    is_inside = is_inside and not PurePosixPath(file).is_absolute() and ".." not in PurePosixPath(file).parts
    _expect(is_inside, f"{where}.file", "the path of a .tar below the set's folder", file)
    return Shard(**content)


def fingerprint_of(manifest: Manifest, split: str, places: Iterable[tuple[int, int]] | None = None) -> Fingerprint:
    """What a split holds, by the hashes of its manifest.

    Args:
        manifest: of the set. split: of it. places: size and time of each of its tars, which stand for the contents
            where there are no hashes.
    """
    shards = manifest.splits[split]
    found: Fingerprint = {
        "samples": sum(shard.samples for shard in shards),
        "shards": _short([shard.samples for shard in shards]),
        "classes": _short(manifest.labels),
    }
    if all(shard.contents for shard in shards):
        kinds = sorted({kind for shard in shards for kind in shard.contents})
        return found | {kind: _short([shard.contents.get(kind) for shard in shards]) for kind in kinds}
    return found | {"sizes": _short([shard.bytes for shard in shards]), "times": _short(list(places or ()))}


def _short(value: Any) -> str:
    return _sha256(json.dumps(value))[:16]


def changes(before: Any, now: Fingerprint) -> list[str]:
    """In words what is other data now; empty: nothing."""
    if not isinstance(before, dict):
        return ["the fingerprint there cannot be read"]
    if before == now:
        return []
    if before.get("samples") != now["samples"]:
        return [f"{before.get('samples')} samples there, {now['samples']} now"]
    words = {
        "shards": "cut into other shards",
        "classes": "names of classes differ",
        "keys": "names of samples differ",
        ".cls": "labels differ (.cls)",
        "sizes": "sizes of shards differ",
        "left_out": "other samples are left out (data.text.language)",
        "times": "shards were written at another time (indexed by --fast: contents are not compared)",
    }
    kinds = [key for key in (*before, *(key for key in now if key not in before)) if before.get(key) != now.get(key)]
    if ("sizes" in before) != ("sizes" in now):
        return ["one was indexed by --fast, by sizes and times, the other by contents: they cannot be compared"]
    return [words.get(kind, f"contents of {kind} differ") for kind in kinds]


class ShardSet:
    """One split of a set of shards. Samples are numbered 0 ... len - 1 in the manifest's order.

    Args:
        root: folder or URL of the set.
        split: which split.
        cache: where shards of a URL are kept; required for a URL.
        limits: how large what is read may be.

    Attributes:
        fingerprint: what the split holds, see `Fingerprint`.
        classes: numbers of classes by name, by label field, of the fields whose files hold names.

    Raises:
        ValueError: for an unknown split.
        BrokenShard: if a local shard is missing or has not the size the manifest gives.
    """

    def __init__(self, root: str, split: str, cache: ShardCache | None = None, limits: Limits = DEFAULT) -> None:
        self.root, self.split, self.cache, self.limits = root.rstrip("/"), split, cache, limits
        self.remote = is_remote(root)
        if self.remote and cache is None:
            raise ValueError(f"{root}: shards of a URL need a node-local cache_dir")
        self.manifest = Manifest.load(root)
        if split not in self.manifest.splits:
            raise ValueError(
                f"{root}: no split {split!r}; it has {', '.join(sorted(self.manifest.splits))}. Name another by "
                "data.val_split or data.train_split (--split of a command), or make one: `viewshards pack` and "
                "`viewshards index` take --val-fraction 0.1, a share of train"
            )
        self.shards = self.manifest.splits[split]
        self.classes = {
            field: {name: number for number, name in enumerate(self.manifest.labels[field])}
            for field in self.manifest.named
        }
        self.counts = [shard.samples for shard in self.shards]
        self.ends = np.cumsum(self.counts)
        self._kept: dict[int, NDArray[np.int64]] = {}
        self._open: OrderedDict[int, tuple[int, Index]] = OrderedDict()
        places = None if self.remote else self._places()
        self.fingerprint = fingerprint_of(self.manifest, split, places)
        if "sizes" in self.fingerprint:
            what = "sizes" if self.remote else "sizes and times"
            logger.warning("%s: known by %s only, not by contents; `viewshards index` without --fast", self.root, what)

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
        try:
            return index.read(descriptor, position, self.limits)
        except ValueError as error:
            raise BrokenShard(f"{self.path(shard)}: {error}") from error

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard number and position in it."""
        shard = int(np.searchsorted(self.ends, sample, "right"))
        if shard == len(self.ends):
            raise BrokenShard(f"{self.root} split {self.split!r}: no sample {sample}, it has {len(self)}")
        position = sample - int(self.ends[shard]) + self.counts[shard]
        return shard, int(self._kept[shard][position]) if shard in self._kept else position

    def leave_out(self, languages: Sequence[str]) -> int:
        """Leaves out the samples without a caption in any of these languages: the others are numbered without them.

        Only shards in which some lack one are read, their `.json` files alone. Returns how many are left out.
        """
        kept = {number: self._speaking(number, languages)
                for number, shard in enumerate(self.shards) if shard.lacking(languages) != 0}  # fmt: skip
        before = len(self)
        self._kept = {number: positions for number, positions in kept.items() if len(positions) < self.counts[number]}
        self.counts = [len(self._kept.get(number, range(count))) for number, count in enumerate(self.counts)]
        self.ends = np.cumsum(self.counts)
        if self._kept:
            listed = {number: positions.tolist() for number, positions in self._kept.items()}
            self.fingerprint = {**self.fingerprint, "left_out": _short(listed)}
        return before - len(self)

    def _speaking(self, shard: int, languages: Sequence[str]) -> NDArray[np.int64]:
        """Positions of the samples of a shard with a caption in one of the languages."""
        descriptor, index = self._reader(shard)
        kept = []
        for position in range(len(index)):
            offset, size = index.files(position).get("json", (0, 0))
            if {*languages_of(os.pread(descriptor, size, offset))} & {*languages}:
                kept.append(position)
        return np.array(kept, np.int64)

    def path(self, shard: int) -> str:
        """Path or URL of a shard."""
        return f"{self.root}/{self.shards[shard].file}"

    def _reader(self, shard: int) -> tuple[int, Index]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1][0])
        path, index_path = self.path(shard), indices.path_of(self.path(shard), self.shards[shard].part)
        if self.remote and self.cache is not None:
            descriptor = self.cache.open(path, self.shards[shard].bytes, self.shards[shard].sha256)
            index = self.cache.read(index_path, lambda local: indices.load(local, self.shards[shard].index))
        else:
            index = indices.load(index_path, self.shards[shard].index)
            descriptor = os.open(path, os.O_RDONLY)
        if index.bytes != self.shards[shard].bytes or len(index) != self.shards[shard].samples:
            os.close(descriptor)
            raise BrokenShard(
                f"{index_path}: belongs to another tar; make it again with `viewshards index {self.root}`"
            )
        self._open[shard] = descriptor, index
        return self._open[shard]

    def _places(self) -> list[tuple[int, int]]:
        """Size and time of each tar.

        Raises:
            BrokenShard: naming those that are missing, no files, or not of the size that the manifest says.
        """
        problems, places = [], []
        for number, shard in enumerate(self.shards):
            try:
                found = Path(self.path(number)).stat()
            except FileNotFoundError:
                problems.append(f"{self.path(number)} is missing")
                continue
            places.append((found.st_size, found.st_mtime_ns))
            if not stat.S_ISREG(found.st_mode):
                problems.append(f"{self.path(number)} is not a file")
            elif found.st_size != shard.bytes:
                problems.append(f"{self.path(number)} has {found.st_size} bytes, the manifest says {shard.bytes}")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise BrokenShard("; ".join(problems[:5]) + more)
        return places
