"""Shards that are there: index other people's tars, verify, inspect."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.markup import escape
from rich.progress import track

from viewshards import index as indices
from viewshards.decode import PICTURES, Picture, kind
from viewshards.index import BrokenShard, atomic_write
from viewshards.limits import DEFAULT, Limits
from viewshards.pack import describe
from viewshards.sample import CLIPS, BrokenSample, Contents
from viewshards.shards import MANIFEST, Manifest, Shard, ShardSet, is_untouched
from viewshards.video import Clip
from viewshards.views import opencv
from viewshards.views.points import drawn, normalised
from viewshards.views.video import overlaid

SPLIT_NAME = re.compile(r"(?:^|[-_.])(train|val|validation|test)(?:[-_.]|$)")


def build_index(root: Path, split: str | None = None, fast: bool = False, limits: Limits = DEFAULT) -> Manifest:
    """Indexes every tar of a folder and writes its manifest.

    A tar's split is the word train, val, validation or test in its name, or `split`.

    Args:
        root: folder of the tars. split: of all of them.
        fast: hash no contents; a resume then knows the set by the sizes and times of its tars.
        limits: how large what is read may be.

    Raises:
        FileNotFoundError: without any tar. BrokenShard: for a tar that is not whole.
    """
    tars = sorted(tar for tar in root.glob("*.tar") if not tar.name.startswith("."))
    if not tars:
        raise FileNotFoundError(f"{root}: no .tar files in it")
    splits: dict[str, list[Shard]] = defaultdict(list)
    highest = -1
    for tar in track(tars, description="indexing"):
        index = indices.scan(tar, limits)
        indices.save(index, indices.path_of(str(tar)))
        found = SPLIT_NAME.search(tar.name)
        splits[split or (found[1].replace("validation", "val") if found else "train")].append(describe(tar, fast))
        highest = max(highest, _highest_class(tar, index, limits))
    labels = {"cls": [str(c) for c in range(highest + 1)]} if highest >= 0 else {}
    manifest = Manifest(root.resolve().name, dict(splits), labels, {"source": "index of existing tars"})
    manifest.save(root)
    return manifest


def _highest_class(tar: Path, index: indices.Index, limits: Limits) -> int:
    highest = -1
    with open(tar, "rb") as f:
        for position in range(len(index)):
            files = index.files(position)
            if "cls" in files:
                offset, size = files["cls"]
                f.seek(offset)
                try:
                    highest = max(highest, Contents({"cls": f.read(min(size, 1000))}, limits).label)
                except BrokenSample as error:
                    raise BrokenShard(f"{tar}: {index.key(position)}: {error}") from error
    return highest


def verify(root: Path, limits: Limits = DEFAULT) -> Iterator[str]:
    """Checks a set: each file by the checks of training, and that no byte has changed. Yields problems.

    The manifest against its checksum; each shard's size, end, index and contents against the manifest; each sample by
    the very checks of training, with every frame of every clip. What a recipe asks for beyond its files (a caption in
    one language, a numeric field, certain views) it does not know.
    """
    manifest = Manifest.load(str(root))
    if not is_untouched(root):
        yield f"{root / MANIFEST}: changed since it was written"
    for split, shards in manifest.splits.items():
        for shard in track(shards, description=f"verifying {escape(split)}"):
            yield from _verify_shard(root / shard.file, shard, tuple(manifest.labels), limits)


def _verify_shard(path: Path, shard: Shard, labels: tuple[str, ...], limits: Limits) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing, or not a file"
        return
    if path.stat().st_size != shard.bytes:
        yield f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}"
    try:
        index = indices.scan(path, limits)
        stored = indices.load(indices.path_of(str(path)), shard.index)
    except BrokenShard as error:
        yield str(error)
        return
    equal = stored.bytes == index.bytes and stored.extensions == index.extensions
    equal = equal and all(np.array_equal(getattr(stored, name), getattr(index, name)) for name in ("keys", "places"))
    if len(index) != shard.samples or not equal:
        yield f"{path}: the index does not fit; `viewshards index` makes it again"
    now = describe(path, fast=shard.sha256 is None)
    if now.sha256 != shard.sha256:
        yield f"{path}: sha256 differs from the manifest's"
    elif now.contents != shard.contents:
        yield f"{path}: its contents are not those that the manifest says"
    with open(path, "rb") as f:
        for position in range(len(index)):
            try:
                found = Contents(index.read(f.fileno(), position, limits), limits, labels).problems()
            except ValueError as error:
                found = [str(error)]
            for problem in found:
                yield f"{path} {index.key(position)}: {problem}"


def inspect(root: str, split: str, limit: int = 2000, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Counts, fields, picture sizes and class balance of a split, the last three by its first `limit` samples."""
    shards = ShardSet(root, split, limits=limits)
    fields: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    broken: list[str] = []
    names = shards.manifest.labels.get("cls", [])
    looked = min(limit, len(shards))
    for sample in range(looked):
        try:
            contents = Contents(shards.read(sample), limits)
            fields.update(contents.files.keys())
            for extension in contents.files:
                if kind(extension) in PICTURES:
                    height, width = contents.picture(extension).shape[:2]
                    sizes[f"{width}x{height}"] += 1
            if (number := contents.label) >= 0:
                classes[names[number] if number < len(names) else str(number)] += 1
        except (BrokenSample, BrokenShard) as error:
            broken.append(f"sample {sample}, {shards.key(sample)}: {error}")
    return {
        "split": split,
        "samples": len(shards),
        "shards": len(shards.shards),
        "bytes": sum(shard.bytes for shard in shards.shards),
        "looked at": looked,
        "fields": dict(fields.most_common()),
        "picture sizes": dict(sizes.most_common(8)),
        "classes": dict(classes.most_common()),
        "broken": dict.fromkeys(broken, ""),
    }


def contact_sheet(
    root: str, split: str, path: Path, samples: int = 64, side: int = 96, limits: Limits = DEFAULT
) -> None:
    """A PNG with evenly spaced samples of a split; the natural views of one sample side by side, broken ones grey."""
    shards = ShardSet(root, split, limits=limits)
    if not len(shards):
        raise ValueError(f"{root}: no samples in split {split!r}")
    cells = [_cell(shards, int(i), side) for i in np.linspace(0, len(shards) - 1, min(samples, len(shards)))]
    width = max(cell.shape[1] for cell in cells)
    cells = [
        cv2.copyMakeBorder(c, 2, 2, 2, width - c.shape[1] + 2, cv2.BORDER_CONSTANT, value=(255,) * 3) for c in cells
    ]
    height = max(cell.shape[0] for cell in cells)
    cells = [cv2.copyMakeBorder(c, 0, height - c.shape[0], 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3) for c in cells]
    columns = max(1, round(np.sqrt(len(cells) * height / width)))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise OSError(f"{path}: cannot be written; give a .png path in a folder that exists")
    _, png = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    with atomic_write(path) as f:
        f.write(png.tobytes())


def _cell(shards: ShardSet, sample: int, side: int) -> Picture:
    try:
        return _drawn(Contents(shards.read(sample), shards.limits), side)
    except ValueError:
        return np.full((side, side, 3), 128, np.uint8)


def _drawn(contents: Contents, side: int) -> Picture:
    files = sorted(contents.files)
    cells = [opencv.resize(contents.picture(e), side, side) for e in files if kind(e) in PICTURES]
    for extension in [e for e in files if kind(e) in CLIPS] if not cells else []:
        try:
            cells.append(drawn(normalised(contents.cloud(extension)), side))
        except BrokenSample:
            cells.append(_strip(contents.clip(extension), side))
    if not cells:
        raise BrokenSample(f"nothing to look at; it has {', '.join(files)}")
    return np.hstack(cells)


def _strip(clip: Clip, side: int) -> Picture:
    """Four frames of a clip, and below them its trajectories if it has any."""
    video, tracks = clip.video, clip.tracks
    length = video.length if tracks is None else len(tracks.frame_index)
    places = ((np.arange(4) + 0.5) * length / 4).astype(int)
    frames = video.read((places if tracks is None else tracks.frame_index[places]).tolist())
    if tracks is not None:
        return overlaid(frames, tracks.ids[places], 4, side)
    return np.hstack([opencv.resize(frame, side, side) for frame in frames])
