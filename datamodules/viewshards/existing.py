"""Shards that are there: index other people's tars, verify, inspect."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from viewshards import index as indices
from viewshards.decode import PICTURES, Picture, decode, kind
from viewshards.index import BrokenShard
from viewshards.pack import describe
from viewshards.shards import Manifest, Shard, ShardSet
from viewshards.video import FrameArray, Tracks, Video
from viewshards.views import opencv
from viewshards.views.points import checked, drawn, normalised
from viewshards.views.video import overlaid

SPLIT_NAME = re.compile(r"(?:^|[-_.])(train|val|validation|test)(?:[-_.]|$)")


def build_index(root: Path, split: str | None = None) -> Manifest:
    """Indexes every tar of a folder and writes its manifest.

    A tar's split is the word train, val, validation or test in its name, or `split`.

    Raises:
        FileNotFoundError: without any tar. BrokenShard: for a tar that is not whole.
    """
    tars = sorted(root.glob("*.tar"))
    if not tars:
        raise FileNotFoundError(f"{root}: no .tar files in it")
    splits: dict[str, list[Shard]] = defaultdict(list)
    highest = -1
    for tar in track(tars, description="indexing"):
        index = indices.scan(tar)
        indices.save(index, indices.path_of(str(tar)))
        found = SPLIT_NAME.search(tar.name)
        splits[split or (found[1].replace("validation", "val") if found else "train")].append(describe(tar))
        highest = max(highest, _highest_class(tar, index))
    labels = {"cls": [str(c) for c in range(highest + 1)]} if highest >= 0 else {}
    manifest = Manifest(root.resolve().name, dict(splits), labels, {"source": "index of existing tars"})
    manifest.save(root)
    return manifest


def _highest_class(tar: Path, index: indices.Index) -> int:
    highest = -1
    with open(tar, "rb") as f:
        for position in range(len(index)):
            files = index.files(position)
            if "cls" in files:
                offset, size = files["cls"]
                f.seek(offset)
                highest = max(highest, decode("cls", f.read(size)))
    return highest


def verify(root: Path) -> Iterator[str]:
    """Checks every shard of a set: size, end blocks, sha256, index, and that every sample decodes. Yields problems."""
    manifest = Manifest.load(str(root))
    for split, shards in manifest.splits.items():
        for shard in track(shards, description=f"verifying {split}"):
            yield from _verify_shard(root / shard.file, shard)


def _verify_shard(path: Path, shard: Shard) -> Iterator[str]:
    if not path.exists():
        yield f"{path}: missing"
        return
    if path.stat().st_size != shard.bytes:
        yield f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}"
    if shard.sha256 is not None:
        with open(path, "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != shard.sha256:
                yield f"{path}: sha256 differs from the manifest's"
    try:
        index = indices.scan(path)
        stored = indices.load(indices.path_of(str(path)))
    except BrokenShard as error:
        yield str(error)
        return
    if len(index) != shard.samples or len(stored) != len(index) or not np.array_equal(stored.offset, index.offset):
        yield f"{path}: the index does not fit; `viewshards index` makes it again"
    with open(path, "rb") as f:
        for position in range(len(index)):
            for extension, (offset, size) in index.files(position).items():
                f.seek(offset)
                try:
                    decode(extension, f.read(size))
                except ValueError as error:
                    yield f"{path} {index.key(position)}: {error}"


def inspect(root: str, split: str, limit: int = 2000) -> dict[str, Any]:
    """Counts, fields, picture sizes and class balance of a split, the last three by its first `limit` samples."""
    shards = ShardSet(root, split)
    fields: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    names = shards.manifest.labels.get("cls", [])
    looked = min(limit, len(shards))
    for sample in range(looked):
        files = shards.read(sample)
        fields.update(files.keys())
        for extension, data in files.items():
            if kind(extension) in PICTURES:
                height, width = decode(extension, data).shape[:2]
                sizes[f"{width}x{height}"] += 1
            elif extension == "cls":
                number = decode(extension, data)
                classes[names[number] if number < len(names) else str(number)] += 1
    return {
        "split": split,
        "samples": len(shards),
        "shards": len(shards.shards),
        "bytes": sum(shard.bytes for shard in shards.shards),
        "looked at": looked,
        "fields": dict(fields.most_common()),
        "picture sizes": dict(sizes.most_common(8)),
        "classes": dict(classes.most_common()),
    }


def contact_sheet(root: str, split: str, path: Path, samples: int = 64, side: int = 96) -> None:
    """A PNG with evenly spaced samples of a split; the natural views of one sample stand side by side."""
    shards = ShardSet(root, split)
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
    if not cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path}: cannot be written; give a .png path in a folder that exists")


def _cell(shards: ShardSet, sample: int, side: int) -> Picture:
    files = shards.read(sample)
    pictures = [decode(e, d) for e, d in sorted(files.items()) if kind(e) in PICTURES]
    cells = [opencv.resize(picture, side, side) for picture in pictures]
    others = [decode(e, d) for e, d in sorted(files.items()) if kind(e) in ("npy", "mp4", "webm")] if not cells else []
    for other in others:
        if isinstance(other, Video) or other.ndim == 4:
            cells.append(_strip(other if isinstance(other, Video) else FrameArray(other), files, side))
        else:
            cells.append(drawn(normalised(checked(other)), side))
    return np.hstack(cells)


def _strip(video: Video | FrameArray, files: dict[str, bytes], side: int) -> Picture:
    """Four frames of a clip, and below them its trajectories if it has any."""
    tracks = Tracks.of(decode("traj.npz", files["traj.npz"])) if "traj.npz" in files else None
    length = video.length if tracks is None else len(tracks.frame_index)
    places = ((np.arange(4) + 0.5) * length / 4).astype(int)
    frames = video.read((places if tracks is None else tracks.frame_index[places]).tolist())
    if tracks is not None:
        return overlaid(frames, tracks.ids[places], 4, side)
    return np.hstack([opencv.resize(frame, side, side) for frame in frames])
