"""Writes a source into shards: parallel, atomic, and resumable after any kind of death.

Every shard is written under another name and renamed when it is whole; the manifest comes last. `.pack.json` says
what is being packed until then, so the same command goes on and another one is refused.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from viewshards import index as indices
from viewshards.account import Account, Question
from viewshards.encoding import Encoding
from viewshards.index import atomic_write
from viewshards.order import generator
from viewshards.shards import MANIFEST, Manifest, Shard
from viewshards.sources.source import Source
from viewshards.writer import Job, Written, adopt, contents_of, write

Leaks = Literal["keep", "drop", "stop"]
PLAN = ".pack.json"
LOCK = ".pack.lock"
PROBED = 32  # samples whose mean size decides how many go into a shard


def pack(
    source: Source,
    out: Path,
    encoding: Encoding = Encoding(),
    shard_mb: float | None = None,
    shard_samples: int | None = None,
    workers: int = 1,
    leaks: Leaks = "keep",
    strict: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Packs a source into `out`, or resumes doing so, and gives an account of everything that was found.

    Args:
        source: what to pack. out: folder of the shards. encoding: what happens to pictures.
        shard_mb: target size of a shard in megabytes, default 100. shard_samples: samples a shard, instead.
        workers: processes.
        leaks: what happens to files of equal content in two splits: `keep` tells of them, `drop` leaves them out of
            the split that is trained on, `stop` ends with their list.
        strict: whether it is an error if anything but system files is left out.
        console: where progress and the account are shown.

    Raises:
        ValueError: if `out` holds something else or lies in the source, if nothing decodes, for leaks and files left
            out where they are not admitted.
    """
    for name, value in (("shard_mb", shard_mb), ("shard_samples", shard_samples), ("workers", workers)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if shard_mb is not None and shard_samples is not None:
        raise ValueError("give shard_mb or shard_samples: each decides alone how many samples a shard holds")
    for root in source.roots:
        if out.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{out} lies in {root}, whose files are packed: give a folder outside of it")
    account = source.account
    if strict:
        _refuse(account)
    out.mkdir(parents=True, exist_ok=True)
    console = console or Console(stderr=True)
    with (out / LOCK).open("a") as lock:  # stays: once removed, two could each hold one of that name
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another process is packing into it") from None
        except OSError as error:
            console.print(f"{out}: no locks on this file system ({error}): start one pack in it only", markup=False)
        size = {"shard_mb": shard_mb or (100 if shard_samples is None else None), "shard_samples": shard_samples}
        said = {name: json.loads(json.dumps(value)) for name, value in source.options.items()}
        asked = {**size, "leaks": leaks, **encoding.made(), **said}
        manifest = _pack(source, out, encoding, asked, workers, account, strict, console)
    _tell(manifest, out, console)
    return manifest


def _pack(
    source: Source,
    out: Path,
    encoding: Encoding,
    asked: dict[str, Any],
    workers: int,
    account: Account,
    strict: bool,
    console: Console,
) -> Manifest:
    made = {"source": source.name, "fingerprint": source.fingerprint(), **asked}
    times = source.times()
    done, each = _take_up(out, made, times)
    each = each or asked["shard_samples"] or _samples_of(source, encoding, asked["shard_mb"])
    jobs = _plan(source, out, each)
    if done is not None:
        if done.made.get("times") != times:
            console.print(f"{out}: the source's files were written anew; comparing their contents", markup=False)
            if done.made.get("contents") != _hashed([contents_of(source, job) for job in jobs]):
                raise ValueError(f"{out} holds the same files with other contents; give another folder, or empty it")
        if strict:
            _refuse(Account.of(done.made["account"]))
        console.print(f"{out}: packed already", markup=False)
        before = done.made["account"]["found"]
        if account.found != before:
            what = f"{account.found:,} {account.unit} are found now, {before:,} when it was packed"
            console.print(f"note: {what}; the account below is of then", markup=False)
        return done
    with atomic_write(out / PLAN) as f:
        f.write(json.dumps({**made, "times": times, "each": each}).encode())
    for leftover in out.glob(".*.part"):  # of a process that was killed
        leftover.unlink()
    written = _written(source, encoding, jobs, workers, f"packing {escape(source.name)}", console)
    leaks = _leaks(source, written)
    if leaks and asked["leaks"] == "stop":
        listed = "\n  ".join(f"{a} = {b}" for a, b in list(leaks.values())[:20])
        raise ValueError(
            f"{len(leaks)} samples have files that another split has too (--leaks drop or keep):\n  {listed}"
        )
    if leaks and asked["leaks"] == "drop":
        again = [replace(job, dropped=frozenset(job.samples) & leaks.keys()) for job in jobs]
        again = [job for job in again if job.dropped]
        written |= _written(source, encoding, again, workers, "leaving leaks out", console)
    _account(account, source, written, leaks, asked["leaks"])
    if strict:
        _refuse(account)
    splits: dict[str, list[Shard]] = {job.split: [] for job in jobs}
    for job in jobs:
        if written[job.path].shard.samples:
            splits[job.split].append(written[job.path].shard)
        else:
            for path in (job.path, Path(indices.path_of(str(job.path)))):
                path.unlink()
    splits = {split: shards for split, shards in splits.items() if shards}
    if not splits:
        raise ValueError("\n".join([f"{source.name}: no sample can be packed", *account.listed()]))
    missing = {split for _, split in source.samples} - splits.keys()
    account.notes += [f"split {split}: none of its samples can be packed" for split in sorted(missing)]
    if "val" not in splits:
        account.notes.append(
            "there is no split 'val': fit evaluates on another by data.val_split, or pack with --val-fraction, the "
            "share of train that becomes val"
        )
    contents = _hashed([written[job.path].contents for job in jobs])
    kept = {"each": each, "times": times, "contents": contents, "account": account.to_json()}
    manifest = Manifest(source.name, splits, source.labels, {**made, **kept})
    manifest.save(out)
    (out / PLAN).unlink()
    return manifest


def _written(
    source: Source, encoding: Encoding, jobs: list[Job], workers: int, title: str, console: Console
) -> dict[Path, Written]:
    """Writes shards in parallel, with progress."""
    found: dict[Path, Written] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    fork = get_context("fork")
    count = fork.Value("q", 0)
    gc.collect()  # else a fork may free what belongs to threads that it has not: FFmpeg's scaler then waits for ever
    # A fork hands the source over as it is, open archives included: sources need not be picklable.
    with ProcessPoolExecutor(workers, fork, adopt, (source, encoding, count)) as pool:
        # Submitted, and so forked, before the bar starts its thread: a fork inherits the locks other threads hold.
        futures = {pool.submit(write, job): job for job in jobs}
        pending = set(futures)
        try:
            with Progress(*columns, console=console) as bar:
                task = bar.add_task(title, total=sum(len(job.samples) for job in jobs))
                while pending:
                    ready, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in ready:
                        found[futures[future].path] = future.result()
                    bar.update(task, completed=count.value)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return found


def _leaks(source: Source, written: dict[Path, Written]) -> dict[int, tuple[str, str]]:
    """Samples with a file that a split has too which is not trained on, or comes later, and the names of both."""
    rank = {"test": 0, "val": 1}
    first: dict[bytes, int] = {}
    pairs = sorted((rank.get(source.samples[sample][1], 2), source.samples[sample][1], sample, digest)
                   for each in written.values() for sample, digest in each.hashes)  # fmt: skip
    found = {}
    for _, split, sample, digest in pairs:
        before = first.setdefault(digest, sample)
        if source.samples[before][1] != split:
            names = (f"{source.samples[each][1]}: {source.parts(each)[1][0]}" for each in (sample, before))
            found[sample] = next(names), next(names)
    return found


def _account(
    account: Account, source: Source, written: dict[Path, Written], leaks: dict[int, tuple[str, str]], mode: str
) -> None:
    """Fills in what became of the samples."""
    out = {sample: reason for each in written.values() for sample, reason in each.broken.items()}
    if mode == "drop":
        out |= {sample: f"equal to a file of another split: {other}" for sample, (_, other) in leaks.items()}
    elif leaks:
        listed = "; ".join(f"{a} = {b}" for a, b in list(leaks.values())[:3])
        account.notes.append(
            f"{len(leaks):,} samples have files that another split has too (--leaks drop or stop): {listed}"
        )
    seen: set[str] = set()
    for sample in range(len(source.samples)):
        what, names = source.parts(sample)
        names = [name for name in names if name not in seen]
        seen.update(names)
        if sample in out:
            for name in names:
                account.leave(name, out[sample])
        elif what == "frames":
            account.frames += len(names)
        else:
            account.packed += len(names)
    _equal_captions(account, source, [each.captions for each in written.values()], out)
    told: Counter[str] = Counter()
    for each in written.values():
        told.update(each.told)
    account.notes += [f"{count:,} {note}" for note, count in sorted(told.items())]


def _equal_captions(account: Account, source: Source, found: list[dict[int, set[int]]], out: Mapping[int, str]) -> None:
    """Notes how many samples share a caption with another one of their split."""
    told = {sample: numbers for each in found for sample, numbers in each.items() if sample not in out}
    often = Counter((source.samples[sample][1], number) for sample, numbers in told.items() for number in numbers)
    shared = sum(any(often[source.samples[s][1], number] > 1 for number in numbers) for s, numbers in told.items())
    if shared:
        account.notes.append(
            f"{shared:,} of {len(told):,} samples with captions share one with another of their split: right answers "
            "to each other in retrieval, but negatives in training without --data.text.duplicates true"
        )


def _refuse(account: Account) -> None:
    """Raises ValueError if anything but system files is left out."""
    if account.left:
        raise ValueError("\n".join([f"{account.left:,} {account.unit} would be left out", *account.listed()]))


def _tell(manifest: Manifest, out: Path, console: Console) -> None:
    report = Account.of(manifest.made["account"]).report(out / MANIFEST)
    for line in [*report, f"{out}: {_summary(manifest)}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _take_up(out: Path, made: dict[str, Any], times: str) -> tuple[Manifest | None, int | None]:
    """The manifest if this pack is finished, and how many samples a shard of one that was begun holds.

    Raises:
        ValueError: if the folder holds something else, naming the options by which it differs.
    """
    if (out / MANIFEST).exists():
        manifest = Manifest.load(str(out))
        if manifest.made.keys() < made.keys() or "account" not in manifest.made:
            raise ValueError(f"{out} holds shards that were not packed from this source; give another folder")
        before = {
            key: value for key, value in manifest.made.items() if key not in ("each", "times", "contents", "account")
        }
        if before != made:
            raise ValueError(f"{out} holds other shards ({_differences(before, made)}); give another folder")
        return manifest, manifest.made.get("each")
    shards = any(out.glob("*.tar"))
    if not (out / PLAN).exists():
        if shards:
            raise ValueError(f"{out} holds tars that are not of this pack; give another folder")
        return None, None
    try:
        before = json.loads((out / PLAN).read_text())
        began, each = before.pop("times"), before.pop("each")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{out / PLAN}: not readable ({error}); empty {out} or give another folder") from error
    same = {key: value for key, value in before.items() if key != "leaks"} == {
        key: value
        for key, value in made.items()
        if key != "leaks"  # it is seen to when all shards are written
    }
    if shards and not same:
        raise ValueError(f"{out} holds an unfinished pack ({_differences(before, made)}); empty it or give another")
    if shards and began != times:
        raise ValueError(f"{out}: the source was written since this pack began; empty the folder, or give another")
    return None, each if shards else None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    words = {"fingerprint": "other files, or understood in another way", "source": "another source"}
    different = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    different = [key for key in different if key not in words] or different
    return ", ".join(
        words[key] if key in words else f"--{key.replace('_', '-')}: {before.get(key)} there, {now.get(key)} asked for"
        for key in different
    )


def _summary(manifest: Manifest) -> str:
    counts = (
        f"{split} {sum(s.samples for s in shards):,} samples in {len(shards):,} shards"
        for split, shards in sorted(manifest.splits.items())
    )
    return ", ".join(counts)


def _samples_of(source: Source, encoding: Encoding, shard_mb: float) -> int:
    """Samples that fill a shard, by the mean size of a few."""
    step = max(1, len(source.samples) // PROBED)
    sizes, reasons = [], []
    for sample in range(0, len(source.samples), step):
        try:
            files = encoding(source.files(sample), tuple(source.labels))
        except Question:
            raise
        except (ValueError, OSError) as error:
            reasons.append(f"{source.samples[sample][0]}: {error}")
            continue
        sizes.append(sum(indices.BLOCK + -(-len(data) // indices.BLOCK) * indices.BLOCK for data in files.values()))
    if not sizes:
        raise ValueError("\n  ".join([f"{source.name}: none of the samples looked at can be packed", *reasons[:20]]))
    return max(1, int(shard_mb * 1e6 / (sum(sizes) / len(sizes))))


def _plan(source: Source, out: Path, each: int) -> list[Job]:
    """Samples of each split in a fixed random order (class folders would fill whole shards), cut into shards."""
    jobs = []
    for split in sorted({split for _, split in source.samples}):
        members = [i for i, (_, s) in enumerate(source.samples) if s == split]
        order = [members[k] for k in generator(0, 0).permutation(len(members))]
        for number, start in enumerate(range(0, len(order), each)):
            path = out / f"{source.name}-{split}-{number:06d}.tar"
            jobs.append(Job(split, path, order[start : start + each]))
    return jobs


def _hashed(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
