"""Writes shards: plain tars, their indices, and their entries in the manifest, each in one pass.

The bytes are those of any tar writer with fixed times. Python's takes some 100 microseconds a member, mostly to make a
header of which all but the name and the size is always the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from viewshards import index as indices
from viewshards.account import Question
from viewshards.dataset import prepare_worker
from viewshards.decode import kind
from viewshards.encoding import Encoding
from viewshards.index import BLOCK, BrokenShard, Index, atomic_write
from viewshards.sample import CLIPS, TRACKS, caption_number, captions_of, is_picture, languages_of
from viewshards.shards import Shard
from viewshards.sources.source import Source


class ShardWriter:
    """Samples into a tar.

    Args:
        file: opened for writing, from its start.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size, self._sha256 = file, 0, hashlib.sha256()
        self._samples: list[tuple[str, dict[str, tuple[int, int, int]]]] = []
        self._contents: dict[str, hashlib._Hash] = {}
        self._languages: Counter[str] = Counter()

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Adds a sample."""
        places, blocks = {}, []
        for extension, data in sorted(files.items()):
            header = _header(f"{key}.{extension}", len(data))
            self._size += len(header)
            places[extension] = self._size, len(data), crc32(header[-BLOCK:])
            blocks += [header, data, bytes(-len(data) % BLOCK)]
            self._size += len(data) + len(blocks[-1])
            contents = self._contents.setdefault(extension, hashlib.sha256())
            contents.update(f"{len(self._samples)} {len(data)}\n".encode())
            contents.update(data)
        self._add(b"".join(blocks))
        _count(self._languages, files.get("json", b""))
        self._samples.append((key, places))

    def close(self) -> None:
        """Ends the tar."""
        end = bytes(-(self._size + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK)
        self._size += len(end)
        self._add(end)

    def index(self) -> Index:
        """The index of the tar, as `viewshards.index.scan` would make it."""
        return indices.tabulate("the tar", self._size, self._samples)

    def shard(self, path: Path) -> Shard:
        """The manifest's entry; the index is written."""
        beside = hashlib.sha256(Path(indices.path_of(str(path))).read_bytes()).hexdigest()
        keys = hashlib.sha256(b"\n".join(self.index().keys.tolist())).hexdigest()
        hashes = {f".{extension}": each.hexdigest() for extension, each in sorted(self._contents.items())}
        return Shard(
            path.name, self._size, len(self._samples), self._sha256.hexdigest(), beside, {"keys": keys, **hashes},
            languages=dict(sorted(self._languages.items())),
        )  # fmt: skip

    def _add(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    info.uname = info.gname = "bigdata"  # as WebDataset's own writer calls them
    return info


def _header(name: str, size: int) -> bytes:
    """The blocks before a member's data."""
    encoded = name.encode()
    if len(encoded) > 100 or not name.isascii() or size >= 8**11:
        return _info(name, size).tobuf(tarfile.PAX_FORMAT)
    digits = b"%011o\0" % size
    checksum = BASE + sum(encoded) + sum(digits)
    return b"".join((encoded.ljust(100, b"\0"), FIRST, digits, SECOND, b"%06o\0 " % checksum, THIRD))


_EMPTY = _info("", 0).tobuf(tarfile.USTAR_FORMAT)
FIRST, SECOND, THIRD = _EMPTY[100:124], _EMPTY[136:148], _EMPTY[156:]
BASE = sum(FIRST) + sum(SECOND) + sum(THIRD) + 8 * ord(" ")
"""Of the checksum of a header, in which it stands as blanks itself."""


@dataclass(frozen=True)
class Job:
    """One shard to write: its path and the samples in it, but for those that are dropped."""

    split: str
    path: Path
    samples: list[int]
    dropped: frozenset[int] = frozenset()


@dataclass
class Written:
    """A shard that is written.

    Attributes:
        shard: its entry in the manifest. broken: why samples are not in it. told: notes about samples, and how often.
        contents: a hash of what was read. hashes: sample and hash of each picture, clip and cloud.
        captions: the numbers of each sample's captions.
    """

    shard: Shard
    broken: dict[int, str]
    told: Counter[str]
    contents: str
    hashes: list[tuple[int, bytes]]
    captions: dict[int, set[int]]


_adopted: tuple[Source, Encoding, Any]


def adopt(source: Source, encoding: Encoding, count: Any) -> None:
    """First call in a worker process."""
    global _adopted
    _adopted = source, encoding, count
    prepare_worker()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the process that packs


def write(job: Job) -> Written:
    """Writes one shard and its index, or finds it written."""
    source, encoding, count = _adopted
    broken: dict[int, str] = {}
    told: Counter[str] = Counter()
    read, hashes, captions = hashlib.sha256(), list[tuple[int, bytes]](), dict[int, set[int]]()

    def samples() -> Iterator[tuple[int, dict[str, bytes]]]:
        for sample in job.samples:
            try:
                found, notes = source.read(sample)
                _add(read, found)
                told.update(notes)
                hashes.extend((sample, hashlib.sha256(found[each]).digest()[:16]) for each in found if _is_media(each))
                if said := captions_of(found):
                    captions[sample] = set(map(caption_number, said))
                if sample not in job.dropped:
                    yield sample, found
            except Question:
                raise
            except (ValueError, OSError) as error:
                broken[sample] = str(error)
            with count.get_lock():
                count.value += 1

    if not _is_written(job, source, encoding):
        with atomic_write(job.path) as f:
            tar = ShardWriter(f)
            for sample, found in samples():
                try:
                    files = encoding(found, tuple(source.labels))
                except ValueError as error:
                    broken[sample] = str(error)
                    continue
                tar.write(source.samples[sample][0], files)
            tar.close()
        indices.save(tar.index(), indices.path_of(str(job.path)))
        shard = tar.shard(job.path)
    else:
        there = _keys(job.path)
        for sample, found in samples():
            if source.samples[sample][0] not in there:
                broken[sample] = _broken(source, encoding, found)
        shard = describe(job.path)
    return Written(shard, broken, told, read.hexdigest(), hashes, captions)


def _is_media(extension: str) -> bool:
    return extension != TRACKS and (is_picture(extension) or kind(extension) in CLIPS)


def _keys(path: Path) -> set[str]:
    index = indices.load(indices.path_of(str(path)))
    return {index.key(i) for i in range(len(index))}


def _broken(source: Source, encoding: Encoding, files: dict[str, bytes]) -> str:
    """Why a sample cannot be packed; empty: it can."""
    try:
        encoding(files, tuple(source.labels))
    except ValueError as error:
        return str(error)
    return ""


def contents_of(source: Source, job: Job) -> str:
    """A hash of the source's files of a shard, those that were left out included as far as they can be read."""
    read = hashlib.sha256()
    for sample in job.samples:
        with contextlib.suppress(ValueError, OSError):
            _add(read, source.files(sample))
    return read.hexdigest()


def _add(read: Any, files: dict[str, bytes]) -> None:
    for extension, data in files.items():
        read.update(f"{extension} {len(data)}\n".encode())
        read.update(data)


def _is_written(job: Job, source: Source, encoding: Encoding) -> bool:
    """Whether the shard is there with all samples but those that cannot be packed, or are dropped."""
    try:
        index = indices.load(indices.path_of(str(job.path)))
        if not job.path.exists() or index.bytes != job.path.stat().st_size:
            return False
    except BrokenShard:
        return False
    there = _keys(job.path)
    wanted = {source.samples[sample][0]: sample for sample in job.samples if sample not in job.dropped}
    if there - wanted.keys():
        return False
    for key in wanted.keys() - there:
        try:
            if not _broken(source, encoding, source.files(wanted[key])):
                return False
        except (ValueError, OSError):
            continue
    return True


def describe(path: Path, fast: bool = False, part: str | None = None, file: str | None = None) -> Shard:
    """The manifest's entry of a tar whose index is there.

    Args:
        path: of the tar. fast: without hashes of its contents. part: of its samples that is meant.
        file: its path in the set's folder, default its name.
    """
    place = indices.path_of(str(path), part)
    index = indices.load(place)
    beside = hashlib.sha256(Path(place).read_bytes()).hexdigest()
    if fast:
        return Shard(file or path.name, index.bytes, len(index), None, beside, part=part)
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        contents = {f".{extension}": hashlib.sha256() for extension in index.extensions}
        languages: Counter[str] = Counter()
        for position in range(len(index)):
            for extension, (offset, size) in index.files(position).items():
                f.seek(offset)
                contents[f".{extension}"].update(f"{position} {size}\n".encode())
                data = f.read(size)
                contents[f".{extension}"].update(data)
                if extension == "json":
                    _count(languages, data)
    hashes = {kind: each.hexdigest() for kind, each in sorted(contents.items())}
    keys = hashlib.sha256(b"\n".join(index.keys.tolist())).hexdigest()
    spoken = dict(sorted(languages.items()))
    return Shard(file or path.name, index.bytes, len(index), digest, beside, {"keys": keys, **hashes}, part, spoken)


def _count(languages: Counter[str], about: bytes) -> None:
    """Counts the languages of a sample's captions."""
    if spoken := languages_of(about):
        languages["+".join(spoken)] += 1
