"""Writes a source into shards: parallel, atomic, and resumable after any kind of death.

Every shard is written under another name and renamed when it is whole; the manifest comes last. `.pack.json` says
what is being packed until then, so the same command goes on and another one is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import io
import json
import math
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import simplejpeg
import webdataset
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from viewshards import index as indices
from viewshards.dataset import prepare_worker
from viewshards.decode import PICTURES, kind
from viewshards.index import BrokenShard, atomic_write
from viewshards.limits import DEFAULT, Limits
from viewshards.order import generator
from viewshards.sample import Contents
from viewshards.shards import MANIFEST, Manifest, Shard
from viewshards.sources.source import Source
from viewshards.views import opencv

PLAN = ".pack.json"
LOCK = ".pack.lock"
PROBED = 32  # samples whose mean size decides how many go into a shard


@dataclass(frozen=True)
class Encoding:
    """What happens to pictures on their way into a shard.

    Attributes:
        resize: shorter side in pixels that larger pictures are brought to; None keeps the bytes as they are.
        quality: of the JPEG that a resized picture becomes (PNG and WebP sources become PNG).
        skip_broken: leave out samples that do not decode instead of stopping.
        limits: how large what is packed may be; they change no byte of it.
    """

    resize: int | None = None
    quality: int = 92
    skip_broken: bool = False
    limits: Limits = DEFAULT

    def __call__(self, files: dict[str, bytes], labels: tuple[str, ...] = ()) -> dict[str, bytes]:
        """Checks every file as training will, so that nothing broken gets in; resizes pictures if asked to."""
        contents, out = Contents(files, self.limits, labels), {}
        for extension, data in files.items():
            if kind(extension) not in PICTURES:
                contents.check(extension)
            elif min((value := contents.picture(extension)).shape[:2]) > (self.resize or math.inf):
                extension, data = self._resized(extension, value)
            out[extension] = data
        return out

    def made(self) -> dict[str, Any]:
        """What of it decides about the bytes."""
        return {"resize": self.resize, "quality": self.quality, "skip_broken": self.skip_broken}

    def _resized(self, extension: str, image: Any) -> tuple[str, bytes]:
        assert self.resize is not None
        factor = self.resize / min(image.shape[:2])
        small = opencv.resize(image, round(image.shape[0] * factor), round(image.shape[1] * factor))
        if kind(extension) in ("jpg", "jpeg"):
            return extension, simplejpeg.encode_jpeg(small, quality=self.quality, colorsubsampling="420")
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, "PNG")
        return f"{extension.rpartition('.')[0]}.png".removeprefix("."), buffer.getvalue()


@dataclass(frozen=True)
class _Job:
    """One shard to write: its path and the samples in it."""

    split: str
    path: Path
    samples: list[int]


def pack(
    source: Source,
    out: Path,
    encoding: Encoding,
    shard_mb: float = 100,
    shard_samples: int | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> Manifest:
    """Packs a source into `out`, or goes on with it.

    Args:
        source: what to pack. out: folder of the shards. encoding: what happens to pictures.
        shard_mb: target size of a shard in megabytes. shard_samples: samples a shard; overrides `shard_mb`.
        workers: processes. console: where progress is shown.

    Raises:
        ValueError: if `out` holds something else, or samples do not decode.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = console or Console(stderr=True)
    with (out / LOCK).open("a") as lock:  # stays: once removed, two could each hold one of that name
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another process is packing into it") from None
        except OSError as error:
            console.print(f"{out}: no locks on this file system ({error}): start one pack in it only", markup=False)
        return _pack(source, out, encoding, shard_mb, shard_samples, workers, console)


def _pack(
    source: Source,
    out: Path,
    encoding: Encoding,
    shard_mb: float,
    shard_samples: int | None,
    workers: int,
    console: Console,
) -> Manifest:
    each = shard_samples or _samples_of(source, encoding, shard_mb)
    made = {"source": source.name, "fingerprint": source.fingerprint(), "shard_samples": each, **encoding.made()}
    times = source.times()
    done = _take_up(out, made, times)
    jobs = _plan(source, out, each)
    if done is not None:
        if done.made.get("times") != times:
            console.print(f"{out}: the source's files were written anew; comparing their contents", markup=False)
            if done.made.get("contents") != _hashed([_contents(source, job) for job in jobs]):
                raise ValueError(f"{out} holds the same files with other contents; give another folder, or empty it")
        console.print(f"{out}: packed already, {_summary(done)}", markup=False)
        return done
    shards: dict[str, list[tuple[str, Shard]]] = {job.split: [] for job in jobs}
    skipped: list[str] = []
    read: dict[Path, str] = {}
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    # A fork hands the source over as it is, open archives included: sources need not be picklable.
    with ProcessPoolExecutor(workers, get_context("fork"), _adopt, (source, encoding)) as pool:
        # Submitted, and so forked, before the bar starts its thread: a fork inherits the locks other threads hold.
        futures = {pool.submit(_write, job): job for job in jobs}
        try:
            with bar:
                task = bar.add_task(f"packing {escape(source.name)}", total=len(source.samples))
                for future in as_completed(futures):
                    shard, problems, read[futures[future].path] = future.result()
                    skipped += problems
                    shards[futures[future].split].append((shard.file, shard))
                    bar.advance(task, len(futures[future].samples))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    splits = {split: [shard for _, shard in sorted(written)] for split, written in shards.items()}
    contents = _hashed([read[job.path] for job in jobs])
    account = {"skipped": sorted(skipped), "times": times, "contents": contents}
    manifest = Manifest(source.name, splits, source.labels, {**made, **account})
    manifest.save(out)
    (out / PLAN).unlink()
    console.print(f"{out}: {_summary(manifest)}", markup=False)
    return manifest


def _take_up(out: Path, made: dict[str, Any], times: str) -> Manifest | None:
    """The manifest if this pack is finished; else notes what is being packed. Refuses a folder with something else."""
    if (out / MANIFEST).exists():
        manifest = Manifest.load(str(out))
        before = {k: v for k, v in manifest.made.items() if k not in ("skipped", "times", "contents")}
        if before != made:
            raise ValueError(f"{out} holds other shards ({_differences(before, made)}); give another folder")
        return manifest
    if (out / PLAN).exists():
        try:
            before = json.loads((out / PLAN).read_text())
        except ValueError as error:
            raise ValueError(f"{out / PLAN}: not readable ({error}); empty {out} or give another folder") from error
        began = before.pop("times", None) if isinstance(before, dict) else None
        if before != made:
            what = _differences(before, made) if isinstance(before, dict) else repr(before)[:100]
            raise ValueError(f"{out} holds an unfinished pack ({what}); empty it or give another")
        if began != times:
            raise ValueError(f"{out}: the source was written since this pack began; empty the folder, or give another")
    elif any(out.glob("*.tar")):
        raise ValueError(f"{out} holds tars that are not of this pack; give another folder")
    with atomic_write(out / PLAN) as f:
        f.write(json.dumps({**made, "times": times}).encode())
    for leftover in out.glob(".*.part"):  # of a process that was killed
        leftover.unlink()
    return None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{k}: {before.get(k)} there, {now.get(k)} asked for" for k in now if before.get(k) != now[k])


def _summary(manifest: Manifest) -> str:
    counts = (
        f"{split} {sum(s.samples for s in shards)} samples in {len(shards)} shards"
        for split, shards in sorted(manifest.splits.items())
    )
    return ", ".join(counts)


def _samples_of(source: Source, encoding: Encoding, shard_mb: float) -> int:
    """Samples that fill a shard, by the mean size of a few."""
    step = max(1, len(source.samples) // PROBED)
    sizes, reason = [], ""
    for sample in range(0, len(source.samples), step):
        try:
            files = encoding(source.files(sample), tuple(source.labels))
        except (ValueError, OSError) as error:
            reason = f"{source.samples[sample][0]}: {error}"
            continue
        sizes.append(sum(indices.BLOCK + -(-len(data) // indices.BLOCK) * indices.BLOCK for data in files.values()))
    if not sizes:
        raise ValueError(f"{source.name}: none of the first samples looked at decodes: {reason}")
    return max(1, int(shard_mb * 1e6 / (sum(sizes) / len(sizes))))


def _plan(source: Source, out: Path, each: int) -> list[_Job]:
    """Samples of each split in a fixed random order (class folders would fill whole shards), cut into shards."""
    jobs = []
    for split in sorted({split for _, split in source.samples}):
        members = [i for i, (_, s) in enumerate(source.samples) if s == split]
        order = [members[k] for k in generator(0, 0).permutation(len(members))]
        for number, start in enumerate(range(0, len(order), each)):
            path = out / f"{source.name}-{split}-{number:06d}.tar"
            jobs.append(_Job(split, path, order[start : start + each]))
    return jobs


_adopted: tuple[Source, Encoding]


def _adopt(source: Source, encoding: Encoding) -> None:
    """First call in a worker process."""
    global _adopted
    _adopted = source, encoding
    prepare_worker()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the process that packs


def _write(job: _Job) -> tuple[Shard, list[str], str]:
    """Writes one shard and its index, or finds it written; with what was left out and a hash of what was read."""
    source, encoding = _adopted
    reasons: dict[str, str] = {}
    read = hashlib.sha256()
    if _is_written(job.path):
        contents = _contents(source, job)
    else:
        # Fixed times make equal sources give equal bytes.
        with atomic_write(job.path) as f, webdataset.TarWriter(f, encoder=False, mtime=0) as tar:
            for sample in job.samples:
                try:
                    found = source.files(sample)
                    _add(read, found)
                    files = encoding(found, tuple(source.labels))
                except (ValueError, OSError) as error:
                    if not encoding.skip_broken:
                        raise ValueError(
                            f"{source.name} sample {source.samples[sample][0]}: {error}. "
                            "Fix or remove it, or pack with --skip-broken"
                        ) from error
                    reasons[source.samples[sample][0]] = str(error)
                    continue
                tar.write({"__key__": source.samples[sample][0], **files})
        contents = read.hexdigest()
        indices.save(indices.scan(job.path, encoding.limits), indices.path_of(str(job.path)))
    index = indices.load(indices.path_of(str(job.path)))
    written = {index.key(i) for i in range(len(index))}
    missing = [source.samples[sample][0] for sample in job.samples if source.samples[sample][0] not in written]
    return describe(job.path), [f"{key}: {reasons.get(key, 'does not decode')}" for key in missing], contents


def _contents(source: Source, job: _Job) -> str:
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


def _hashed(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _is_written(path: Path) -> bool:
    try:
        return path.exists() and indices.load(indices.path_of(str(path))).bytes == path.stat().st_size
    except BrokenShard:
        return False


def describe(path: Path, fast: bool = False) -> Shard:
    """The manifest's entry of a tar whose index is there; with `fast` without hashes of its contents."""
    place = indices.path_of(str(path))
    index = indices.load(place)
    beside = hashlib.sha256(Path(place).read_bytes()).hexdigest()
    if fast:
        return Shard(path.name, index.bytes, len(index), None, beside)
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        contents = {f".{extension}": hashlib.sha256() for extension in index.extensions}
        for position in range(len(index)):
            for extension, (offset, size) in index.files(position).items():
                f.seek(offset)
                contents[f".{extension}"].update(f"{position} {size}\n".encode())
                contents[f".{extension}"].update(f.read(size))
    hashes = {kind: each.hexdigest() for kind, each in sorted(contents.items())}
    keys = hashlib.sha256(b"\n".join(index.keys.tolist())).hexdigest()
    return Shard(path.name, index.bytes, len(index), digest, beside, {"keys": keys, **hashes})
