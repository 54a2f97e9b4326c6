"""Trajectories of what moves in a clip, without a learned model: colours, connected regions, overlaps.

What it is: k-means on colours, connected components, linking by overlap with a constant velocity. What it is not: it
knows no objects. It cuts textured background to pieces, joins touching things of one colour, and loses what is small
and fast. Numbers made with it must not be compared with those of SAM 2 or another panoptic tracker; any of these takes
its place as an `Extractor`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from viewshards.decode import kind
from viewshards.limits import DEFAULT, Limits
from viewshards.sample import FILES, TRACKS, Contents
from viewshards.shards import Manifest, ShardSet
from viewshards.sources.source import Source
from viewshards.video import Frames, Ids, Tracks

Extractor = Callable[[Frames], Ids]
"""(T, H, W, 3) bytes to trajectories (T, H, W), 0 for none."""


@dataclass(frozen=True)
class ColourTracks:
    """The extractor of this module. Nothing in it is random.

    Attributes:
        colours: k of k-means in RGB over the whole clip, started by farthest points. iterations: of k-means.
        smallest: area of a region in pixels. regions: of a frame, the largest.
        accept: overlap (intersection over union) with the region before, or with that shifted by its velocity, from
            which on two regions of one colour are the same thing.
        patience: frames a lost trajectory is kept alive.
    """

    colours: int = 6
    iterations: int = 10
    smallest: int = 8
    regions: int = 16
    accept: float = 0.25
    patience: int = 2

    def __call__(self, frames: Frames) -> Ids:
        """(T, H, W, 3) to (T, H, W)."""
        colour = self._clusters(frames)
        ids = np.zeros(colour.shape, np.int64)
        alive: dict[int, dict[str, Any]] = {}
        made = 0
        for t, labels in enumerate(colour):
            found = self._regions(labels)
            offers = []
            for r, (cluster, mask) in enumerate(found):
                for number, track in alive.items():
                    if track["cluster"] == cluster:
                        shifted = _shifted(track["mask"], track["velocity"] * (t - track["seen"]))
                        score = max(_overlap(mask, track["mask"]), _overlap(mask, shifted))
                        if score >= self.accept:
                            offers.append((-score, number, r))
            taken: dict[int, int] = {}
            for _, number, r in sorted(offers):  # one to one, the best first
                if number not in taken.values() and r not in taken:
                    taken[r] = number
            for r, (cluster, mask) in enumerate(found):
                centre = np.argwhere(mask).mean(0)
                if r in taken:
                    track = alive[taken[r]]
                    moved = (centre - track["centre"]) / (t - track["seen"])
                    velocity = 0.5 * track["velocity"] + 0.5 * moved
                else:
                    made += 1
                    taken[r], velocity = made, np.zeros(2)
                alive[taken[r]] = {"cluster": cluster, "mask": mask, "centre": centre, "velocity": velocity, "seen": t}
                ids[t][mask] = taken[r]
            alive = {number: track for number, track in alive.items() if t - track["seen"] <= self.patience}
        return ids

    def _clusters(self, frames: Frames) -> NDArray[np.int64]:
        """(T, H, W): the colour of each pixel, by k-means on blurred frames."""
        blurred = np.stack([cv2.blur(frame, (3, 3), borderType=cv2.BORDER_REPLICATE) for frame in frames])
        pixels = blurred.reshape(-1, 3).astype(np.float32)
        distinct, place, count = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
        centres = distinct[[int(count.argmax())]]
        while len(centres) < min(self.colours, len(distinct)):
            distance = _distances(distinct, centres).min(1)
            centres = np.concatenate([centres, distinct[[int(distance.argmax())]]])
        for _ in range(self.iterations):
            nearest = _distances(distinct, centres).argmin(1)
            for c in range(len(centres)):
                if (nearest == c).any():
                    centres[c] = np.average(distinct[nearest == c], axis=0, weights=count[nearest == c])
        labels: NDArray[np.int64] = _distances(distinct, centres).argmin(1)[place.reshape(-1)].reshape(frames.shape[:3])
        return labels

    def _regions(self, labels: NDArray[np.int64]) -> list[tuple[int, NDArray[np.bool_]]]:
        """Colour and mask of the largest connected regions of a frame, largest first."""
        found = []
        for cluster in np.unique(labels):
            count, parts, stats, _ = cv2.connectedComponentsWithStats(
                (labels == cluster).astype(np.uint8), connectivity=4
            )
            found += [
                (int(stats[p, cv2.CC_STAT_AREA]), int(cluster), parts == p)
                for p in range(1, count)
                if stats[p, cv2.CC_STAT_AREA] >= self.smallest
            ]
        found.sort(key=lambda region: -region[0])
        return [(cluster, mask) for _, cluster, mask in found[: self.regions]]


def _distances(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    squared: NDArray[np.float32] = ((points[:, None] - centres) ** 2).sum(2)
    return squared


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _shifted(mask: NDArray[np.bool_], by: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The mask moved by whole pixels; what leaves the frame is gone."""
    dy, dx = (round(v) for v in by.tolist())
    out = np.zeros_like(mask)
    height, width = mask.shape
    out[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = mask[
        max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)
    ]
    return out


class TrackedShards(Source):
    """The samples of a set of clips with trajectories beside them: what `viewshards tracks` packs.

    Args:
        root: folder of the shards. extractor: makes trajectories of frames. frames: of each clip that are looked at,
            evenly spaced; None: all. limits: how large what is read may be.
    """

    def __init__(self, root: str, extractor: Extractor, frames: int | None = 16, limits: Limits = DEFAULT) -> None:
        manifest = Manifest.load(root)
        self.name, self.labels, self.extractor, self.frames = manifest.name, manifest.labels, extractor, frames
        self._sets = {split: ShardSet(root, split, limits=limits) for split in manifest.splits}
        self._places = [(split, i) for split, shards in self._sets.items() for i in range(len(shards))]
        self.samples = [(self._sets[split].key(i), split) for split, i in self._places]

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        split, i = self._places[sample]
        files = dict(self._sets[split].read(i))
        for name, classes in self._sets[split].classes.items():  # a packed set holds numbers of classes
            if name in files:
                files[name] = str(Contents(files, classes={name: classes}).number(name)).encode()
        names = [extension for extension in sorted(files) if kind(extension) in FILES["video"]]
        if not names:
            raise ValueError(f"no clip; it has {', '.join(sorted(files))}")
        clip_alone = {names[0]: files[names[0]]}  # tracks that are there are replaced
        video = Contents(clip_alone, self._sets[split].limits).clip(names[0]).video
        count = min(self.frames or video.length, video.length)
        places = ((np.arange(count) + 0.5) * video.length / count).astype(np.int64)
        ids = self.extractor(video.read(places.tolist()))
        if ids.shape[0] != count or ids.ndim != 3:
            raise ValueError(f"the extractor gave {ids.shape} for {count} frames")
        files[TRACKS] = Tracks(ids, places).to_bytes()
        return files

    @override
    def fingerprint(self) -> str:
        clips = {split: shards.fingerprint for split, shards in self._sets.items()}
        made = self.extractor  # a function's repr has an address in it
        name = f"{made.__module__}.{made.__qualname__}" if hasattr(made, "__qualname__") else repr(made)
        return f"{super().fingerprint()}-{name}-{self.frames}-{clips}"
