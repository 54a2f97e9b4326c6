"""Writes a source into shards: parallel, atomic, and resumable after any kind of death.

Every shard is written under another name and renamed when it is whole; the manifest comes last. `.pack.json` says
what is being packed until then, so the same command goes on and another one is refused.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import io
import json
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import simplejpeg
import webdataset
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from viewshards import index as indices
from viewshards.dataset import prepare_worker
from viewshards.decode import PICTURES, decode, kind
from viewshards.index import BrokenShard, atomic_write
from viewshards.order import generator
from viewshards.shards import MANIFEST, Manifest, Shard
from viewshards.sources.source import Source
from viewshards.video import Video
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
    """

    resize: int | None = None
    quality: int = 92
    skip_broken: bool = False

    def __call__(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """Decodes every file, so that nothing broken gets in; resizes pictures if asked to."""
        out = {}
        for extension, data in files.items():
            value = decode(extension, data)
            if isinstance(value, Video):
                value.read([value.length - 1])  # the last frame stands for all
            if kind(extension) in PICTURES and self.resize and min(value.shape[:2]) > self.resize:
                extension, data = self._resized(extension, value)
            out[extension] = data
        return out

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
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another process is packing into it") from None
        try:
            return _pack(source, out, encoding, shard_mb, shard_samples, workers, console or Console(stderr=True))
        finally:
            (out / LOCK).unlink(missing_ok=True)


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
    made = {"source": source.name, "fingerprint": source.fingerprint(), "shard_samples": each, **asdict(encoding)}
    done = _take_up(out, made)
    if done is not None:
        console.print(f"{out}: packed already, {_summary(done)}")
        return done
    jobs = _plan(source, out, each)
    shards: dict[str, list[tuple[str, Shard]]] = {job.split: [] for job in jobs}
    skipped: list[str] = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    # A fork hands the source over as it is, open archives included: sources need not be picklable.
    with ProcessPoolExecutor(workers, get_context("fork"), _adopt, (source, encoding)) as pool:
        # Submitted, and so forked, before the bar starts its thread: a fork inherits the locks other threads hold.
        futures = {pool.submit(_write, job): job for job in jobs}
        try:
            with bar:
                task = bar.add_task(f"packing {source.name}", total=len(source.samples))
                for future in as_completed(futures):
                    shard, problems = future.result()
                    skipped += problems
                    shards[futures[future].split].append((shard.file, shard))
                    bar.advance(task, len(futures[future].samples))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    splits = {split: [shard for _, shard in sorted(written)] for split, written in shards.items()}
    manifest = Manifest(source.name, splits, source.labels, {**made, "skipped": sorted(skipped)})
    manifest.save(out)
    (out / PLAN).unlink()
    console.print(f"{out}: {_summary(manifest)}")
    return manifest


def _take_up(out: Path, made: dict[str, Any]) -> Manifest | None:
    """The manifest if this pack is finished; else notes what is being packed. Refuses a folder with something else."""
    if (out / MANIFEST).exists():
        manifest = Manifest.load(str(out))
        before = {k: v for k, v in manifest.made.items() if k != "skipped"}
        if before != made:
            raise ValueError(f"{out} holds other shards ({_differences(before, made)}); give another folder")
        return manifest
    if (out / PLAN).exists():
        before = json.loads((out / PLAN).read_text())
        if before != made:
            raise ValueError(f"{out} holds an unfinished pack ({_differences(before, made)}); empty it or give another")
    elif any(out.glob("*.tar")):
        raise ValueError(f"{out} holds tars that are not of this pack; give another folder")
    with atomic_write(out / PLAN) as f:
        f.write(json.dumps(made).encode())
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
            files = encoding(source.files(sample))
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


def _write(job: _Job) -> tuple[Shard, list[str]]:
    """Writes one shard and its index, or finds it written; and what was left out. Runs in a worker process."""
    source, encoding = _adopted
    reasons: dict[str, str] = {}
    if not _is_written(job.path):
        # Fixed times make equal sources give equal bytes.
        with atomic_write(job.path) as f, webdataset.TarWriter(f, encoder=False, mtime=0) as tar:
            for sample in job.samples:
                try:
                    files = encoding(source.files(sample))
                except (ValueError, OSError) as error:
                    if not encoding.skip_broken:
                        raise ValueError(
                            f"{source.name} sample {source.samples[sample][0]}: {error}. "
                            "Mend or remove it, or pack with --skip-broken"
                        ) from error
                    reasons[source.samples[sample][0]] = str(error)
                    continue
                tar.write({"__key__": source.samples[sample][0], **files})
        indices.save(indices.scan(job.path), indices.path_of(str(job.path)))
    index = indices.load(indices.path_of(str(job.path)))
    written = {index.key(i) for i in range(len(index))}
    missing = [source.samples[sample][0] for sample in job.samples if source.samples[sample][0] not in written]
    return describe(job.path), [f"{key}: {reasons.get(key, 'does not decode')}" for key in missing]


def _is_written(path: Path) -> bool:
    try:
        return path.exists() and indices.load(indices.path_of(str(path))).bytes == path.stat().st_size
    except BrokenShard:
        return False


def describe(path: Path) -> Shard:
    """The manifest's entry of a tar whose index is there."""
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    index = indices.load(indices.path_of(str(path)))
    return Shard(path.name, index.bytes, len(index), digest)
