"""Checks a set of shards: every byte, every sample by the checks of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.progress import track

from viewshards import index as indices
from viewshards.account import Account
from viewshards.index import BrokenShard, Keys
from viewshards.limits import DEFAULT, Limits
from viewshards.sample import Contents
from viewshards.shards import MANIFEST, Manifest, Shard, is_untouched
from viewshards.sources.tree import Tree
from viewshards.writer import describe

NOT_CHECKED = (
    "what a recipe asks for beyond a sample's own files: a caption in one language, a numeric field, certain views; "
    "labels and captions against the pictures; equal pictures in two splits"
)


def verify(root: Path, limits: Limits = DEFAULT) -> Iterator[str]:
    """Checks a set: each file by the checks of training, and that no byte has changed. Yields problems.

    The manifest against its checksum; each shard's size, end, index and contents against the manifest; each sample by
    the very checks of training, with every frame of every clip; and that no tar lies there that the manifest does not
    name. What it does not check is `NOT_CHECKED`.
    """
    manifest = Manifest.load(str(root))
    if not is_untouched(root):
        yield f"{root / MANIFEST}: changed since it was written"
    named: Counter[str] = Counter()
    for split, shards in manifest.splits.items():
        for shard in track(shards, description=f"verifying {escape(split)}"):
            named[shard.file] += shard.samples
            yield from _verify_shard(root / shard.file, shard, manifest, limits)
    there = [file.name for file in Tree.of(root, limits).files if file.suffix == ".tar"]
    for name in there:
        if name not in named and _holds_samples(root / name, limits, _keys(manifest)):
            yield f"{root / name}: a tar that the manifest does not name; `viewshards index` takes it in"
    for name in {shard.file for shards in manifest.splits.values() for shard in shards if shard.part}:
        total = len(indices.scan(root / name, limits, _keys(manifest))) if (root / name).is_file() else named[name]
        if total != named[name]:
            yield f"{root / name}: {total} samples, its parts have {named[name]}"


def _unnamed(contents: Contents, manifest: Manifest) -> list[str]:
    """Classes of a sample that the manifest has no name for."""
    fields = [field for field in manifest.labels if field in contents.files and field not in manifest.named]
    numbers = {field: contents.number(field) for field in fields}
    return [
        f".{field}: class {number}, the manifest names {len(manifest.labels[field])}"
        for field, number in numbers.items()
        if number >= len(manifest.labels[field])
    ]


def _holds_samples(tar: Path, limits: Limits, keys: Keys) -> bool:
    try:
        return len(indices.scan(tar, limits, keys, Account())) > 0
    except BrokenShard:
        return True


def partial(root: Path, limits: Limits = DEFAULT) -> list[str]:
    """Of each split which files only a part of its samples have, in words: labels, captions, halves of samples."""
    manifest, out = Manifest.load(str(root)), []
    for split, shards in manifest.splits.items():
        counts: Counter[str] = Counter()
        for shard in shards:
            index = indices.load(indices.path_of(str(root / shard.file), shard.part), shard.index)
            for column, extension in enumerate(index.extensions):
                counts[extension] += int((index.places[:, column, 1] > 0).sum())
        total = sum(shard.samples for shard in shards)
        out += [
            f"{split}: {count:,} of {total:,} samples have .{e}" for e, count in sorted(counts.items()) if count < total
        ]
    return out


def _keys(manifest: Manifest) -> Keys:
    return "last-dot" if manifest.made.get("keys") == "last-dot" else "first-dot"


def _verify_shard(path: Path, shard: Shard, manifest: Manifest, limits: Limits) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing, or not a file"
        return
    if path.stat().st_size != shard.bytes:
        yield f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}"
    try:
        index = indices.scan(path, limits, _keys(manifest), Account())
        stored = indices.load(indices.path_of(str(path), shard.part), shard.index)
    except BrokenShard as error:
        yield str(error)
        return
    if shard.part:
        there = set(stored.keys.tolist())
        index = index.only([position for position, key in enumerate(index.keys.tolist()) if key in there])
    equal = stored.bytes == index.bytes and stored.extensions == index.extensions
    equal = equal and all(np.array_equal(getattr(stored, name), getattr(index, name)) for name in ("keys", "places"))
    if len(index) != shard.samples or not equal:
        yield f"{path}: the index does not fit; `viewshards index` makes it again"
    now = describe(path, fast=shard.sha256 is None, part=shard.part, file=shard.file)
    if now.sha256 != shard.sha256:
        yield f"{path}: sha256 differs from the manifest's"
    elif now.contents != shard.contents:
        yield f"{path}: its contents are not those that the manifest says"
    classes = {name: {word: i for i, word in enumerate(manifest.labels[name])} for name in manifest.named}
    with open(path, "rb") as f:
        for position in range(len(index)):
            try:
                files = index.read(f.fileno(), position, limits)
                contents = Contents(files, limits, tuple(manifest.labels), classes)
                found = contents.problems() or _unnamed(contents, manifest)
            except ValueError as error:
                found = [str(error)]
            for problem in found:
                yield f"{path} {index.key(position)}: {problem}"
