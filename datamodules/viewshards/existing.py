"""Shards that are there, to look at: counts, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from viewshards.decode import Picture, kind
from viewshards.index import BrokenShard, atomic_write
from viewshards.limits import DEFAULT, Limits
from viewshards.sample import CLIPS, BrokenSample, Contents, is_picture
from viewshards.shards import ShardSet
from viewshards.video import Clip
from viewshards.views import opencv
from viewshards.views.points import drawn, normalised
from viewshards.views.video import overlaid


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
            contents = Contents(shards.read(sample), limits, classes=shards.classes)
            fields.update(contents.files.keys())
            for extension in contents.files:
                if is_picture(extension):
                    height, width = contents.picture(extension).shape[:2]
                    sizes[f"{width}x{height}"] += 1
            if (number := contents.label) >= 0:
                classes[names[number] if number < len(names) else str(number)] += 1
        except (BrokenSample, BrokenShard) as error:
            broken.append(f"{_name(shards, sample)}: {error}")
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
    """A PNG with evenly spaced samples of a split; the natural views of one sample side by side, broken ones grey.

    Beside it a `.txt` of the same name: row, column and names of each.
    """
    shards = ShardSet(root, split, limits=limits)
    if not len(shards):
        raise ValueError(f"{root}: no samples in split {split!r}")
    chosen = np.linspace(0, len(shards) - 1, min(samples, len(shards))).astype(int).tolist()
    cells = [_cell(shards, sample, side) for sample in chosen]
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
    with atomic_write(path.with_suffix(".txt")) as f:
        for place, sample in enumerate(chosen):
            row, column = divmod(place, columns)
            f.write(f"row {row + 1}, column {column + 1}: {_name(shards, sample)}\n".encode(errors="backslashreplace"))


def _name(shards: ShardSet, sample: int) -> str:
    """Number, key, and the name of its file in the source."""
    try:
        name = Contents(shards.read(sample), shards.limits).file_name
    except ValueError:
        name = ""
    return f"sample {sample}, {shards.key(sample)}" + (f" ({name})" if name else "")


def _cell(shards: ShardSet, sample: int, side: int) -> Picture:
    try:
        return _drawn(Contents(shards.read(sample), shards.limits), side)
    except ValueError:
        return np.full((side, side, 3), 128, np.uint8)


def _drawn(contents: Contents, side: int) -> Picture:
    files = sorted(contents.files)
    cells = [opencv.resize(opencv.shown(contents.picture(e)), side, side) for e in files if is_picture(e)]
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
