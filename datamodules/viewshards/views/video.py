"""Views of clips: some frames, one geometry and one colour for all of them, trajectories moved along.

A view is (T, size, size, 3) bytes, and where the clip has trajectories their numbers (T, h, h) with it, packed to 1..M.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from viewshards.video import Clip, Frames, Ids
from viewshards.views import opencv
from viewshards.views.augmentation import Augmentation, Draw

View = tuple[Frames, Ids | None]


class VideoViews:
    """V views of a clip, each of a part of it in time.

    Args:
        frames: T of a view.
        augmentations: one a view; its numbers are drawn once for a clip.
        span: share of the clip that a view covers, at a random place. In it one frame is drawn of each of T intervals.
        by: whether intervals are equal in `frames` or in `time`, which differ where the frame rate varies.
        tracks: whether trajectories go along. track_size: their side; default a quarter of the frames'.
        smallest: area in pixels of a track's side below which a trajectory is left out. most: how many are kept, the
            largest; the others become none.
    """

    modality = "video"

    def __init__(
        self,
        frames: int = 16,
        augmentations: Sequence[Augmentation] = (Augmentation(224, (0.2, 1.0)),),
        span: float = 1.0,
        tracks: bool = False,
        track_size: int | None = None,
        smallest: int = 1,
        most: int = 256,
        by: Literal["frames", "time"] = "frames",
    ) -> None:
        if by not in ("frames", "time"):
            raise ValueError(f"intervals are equal by frames or by time, got {by!r}")
        if frames < 1 or not augmentations or not 0 < span <= 1 or most < 1:
            raise ValueError(
                f"a view needs frames, an augmentation, a span in (0, 1] and room for tracks; got {frames}, "
                f"{len(augmentations)}, {span}, {most}"
            )
        self.frames, self.augmentations, self.span, self.tracks = frames, list(augmentations), span, tracks
        self.track_size, self.smallest, self.most, self.by = track_size, smallest, most, by

    def __call__(self, clips: Sequence[Clip], rng: np.random.Generator) -> tuple[list[View], list[list[float]]]:
        """V views, and no rows for a device."""
        order, views = rng.permutation(len(clips)), []
        for v, augmentation in enumerate(self.augmentations):
            clip = clips[order[v % len(order)]]
            places = self._drawn(clip, rng)
            frames, ids = self._read(clip, places)
            draw = augmentation.draw(rng, *frames.shape[1:3])
            view = np.stack([opencv.apply(frame, augmentation, draw) for frame in frames])
            views.append((view, None if ids is None else self._moved(ids, frames, augmentation.size, draw)))
        return views, []

    def plain(self) -> PlainVideo:
        """What evaluation sees."""
        return PlainVideo(self)

    def _scale(self, clip: Clip) -> tuple[NDArray[np.float64], float]:
        """Where frames that can be drawn begin, in frames or seconds, and the end; with tracks those that have some."""
        if self.tracks and clip.tracks is None:
            raise ValueError("no traj.npz; `viewshards tracks` makes one, or set tracks: false")
        numbers = clip.tracks.frame_index if self.tracks and clip.tracks else np.arange(clip.video.length)
        if self.by == "frames":
            return np.arange(len(numbers), dtype=np.float64), float(len(numbers))
        times = clip.video.times[numbers] - clip.video.times[numbers[0]]
        return times, float(times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 1))

    def _read(self, clip: Clip, places: NDArray[np.int64]) -> tuple[Frames, Ids | None]:
        if not self.tracks:
            return clip.video.read(places.tolist()), None
        assert clip.tracks is not None
        return clip.video.read(clip.tracks.frame_index[places].tolist()), clip.tracks.ids[places]

    def _drawn(self, clip: Clip, rng: np.random.Generator) -> NDArray[np.int64]:
        """(T,) numbers, rising: one of each of T equal intervals of a random part of the clip."""
        begin, end = self._scale(clip)
        covered = end * self.span
        edges = rng.uniform(0, end - covered) + np.linspace(0, covered, self.frames + 1)
        return np.searchsorted(begin, rng.uniform(edges[:-1], edges[1:]), "right") - 1

    def _moved(self, ids: Ids, frames: Frames, size: int, draw: Draw) -> Ids:
        """Trajectories through the geometry of their frames, by nearest neighbours."""
        side = self.track_size or size // 4
        scale = ids.shape[1] / frames.shape[1], ids.shape[2] / frames.shape[2]
        top, left, height, width = draw.box
        y = top * scale[0] + (np.arange(side) + 0.5) * height * scale[0] / side
        x = left * scale[1] + (np.arange(side) + 0.5) * width * scale[1] / side
        rows = np.clip(y.astype(int), 0, ids.shape[1] - 1)
        columns = np.clip(x.astype(int), 0, ids.shape[2] - 1)
        view = ids[:, rows[:, None], columns[None]]
        return packed(view[:, :, ::-1] if draw.flip else view, self.smallest, self.most)


class PlainVideo:
    """Each clip of a sample: the middle frames of T equal intervals, squeezed to the size of the first view.

    Args:
        views: whose number of frames, size and tracks hold.
    """

    modality = "video"

    def __init__(self, views: VideoViews) -> None:
        self.views = views

    def __call__(self, clips: Sequence[Clip], rng: np.random.Generator) -> tuple[list[View], list[list[float]]]:
        """One view a clip."""
        return [self._view(clip) for clip in clips], []

    def _view(self, clip: Clip) -> View:
        views, size = self.views, self.views.augmentations[0].size
        begin, end = views._scale(clip)
        places = np.searchsorted(begin, (np.arange(views.frames) + 0.5) * end / views.frames, "right") - 1
        frames, ids = views._read(clip, places)
        whole = Draw((0, 0, *frames.shape[1:3]))
        view = np.stack([opencv.resize(frame, size, size) for frame in frames])
        return view, None if ids is None else views._moved(ids, frames, size, whole)


def packed(ids: Ids, smallest: int = 1, most: int = 256) -> Ids:
    """Trajectories renumbered 1..M in the order of their old numbers; too small ones and too many become 0."""
    numbers, places, areas = np.unique(ids, return_inverse=True, return_counts=True)
    keep = (numbers > 0) & (areas >= smallest)
    if keep.sum() > most:
        keep &= np.isin(numbers, numbers[keep][np.argsort(-areas[keep], kind="stable")[:most]])
    table = np.where(keep, np.cumsum(keep), 0)
    return np.asarray(table[places].reshape(ids.shape), np.int64)


def overlaid(frames: Frames, ids: Ids, columns: int = 8, side: int = 96) -> NDArray[np.uint8]:
    """A strip of frames above the same frames coloured by trajectory; to look at."""
    places = np.linspace(0, len(frames) - 1, min(columns, len(frames))).astype(int)
    palette = np.random.default_rng(3).integers(40, 256, (int(ids.max(initial=0)) + 1, 3)).astype(np.uint8)
    palette[0] = 0
    rows: list[list[Any]] = [[], []]
    for t in places:
        frame = opencv.resize(frames[t], side, side)
        colours = cv2.resize(palette[ids[t]], (side, side), interpolation=cv2.INTER_NEAREST)
        rows[0].append(frame)
        rows[1].append(cv2.addWeighted(frame, 0.4, colours, 0.6, 0))
    return np.vstack([np.hstack(row) for row in rows])
