"""Clips: decoded by the frame, from files or folders of frames, with the trajectories of what moves in them.

Tracks are a `traj.npz` beside the clip: `ids` (T, h, w), 0 for nothing, else the number of a trajectory, which is one
for the whole clip, and `frame_index` (T,), the source frames they belong to. They may be of any resolution.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]
"""(T, H, W, 3) uint8 RGB."""
Ids = NDArray[np.int64]
"""(T, h, w): trajectories by number, 0 for none."""


class Video:
    """An encoded clip; frames are decoded when they are asked for.

    Args:
        data: bytes of an .mp4 or .webm file, or whatever PyAV reads.

    Attributes:
        length: frames. fps: of the stream.

    Raises:
        ValueError: without a video stream, or without PyAV.
    """

    def __init__(self, data: bytes) -> None:
        self._av, self._data = _needed_av(), data
        with self._open() as container:
            if not container.streams.video:
                raise ValueError("no video stream in it")
            stream = container.streams.video[0]
            self.fps = float(stream.average_rate or 0)
            self.length = int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
        if not self.length or not self.fps:
            raise ValueError("a video without frames")

    def _open(self) -> Any:
        return self._av.open(io.BytesIO(self._data))

    def read(self, wanted: Sequence[int]) -> Frames:
        """The frames of these numbers, in this order; decoding starts at the key frame before the first of them.

        Raises:
            ValueError: if a frame is not there, or does not decode.
        """
        missing, found = set(wanted), {}
        with self._open() as container:
            stream = container.streams.video[0]
            start = stream.start_time or 0
            container.seek(start + round(min(wanted) / self.fps / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                number = round(float((frame.pts - start) * stream.time_base) * self.fps)
                if number in missing:
                    found[number] = frame.to_ndarray(format="rgb24")
                    missing.discard(number)
                if not missing:
                    break
        if missing:
            raise ValueError(f"frame {min(missing)} of {self.length} cannot be decoded")
        return np.stack([found[number] for number in wanted])


class FrameArray:
    """A clip that is an array (T, H, W, 3) already, behind the same interface."""

    def __init__(self, frames: NDArray[Any]) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"a clip is an array (T, H, W, 3) of bytes, got {frames.shape} of {frames.dtype}")
        self.frames, self.length = frames, len(frames)

    def read(self, wanted: Sequence[int]) -> Frames:
        """The frames of these numbers."""
        return np.asarray(self.frames[list(wanted)])


@dataclass(frozen=True)
class Tracks:
    """Trajectories of a clip.

    Attributes:
        ids: (T, h, w). frame_index: (T,) source frames.
    """

    ids: Ids
    frame_index: NDArray[np.int64]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Tracks:
        """Of a `traj.npz`: global numbers (`ids`), or the released form (`masks` with numbers of each frame, `graph`).

        Raises:
            ValueError: naming what is missing or does not fit.
        """
        if "ids" in arrays:
            ids = arrays["ids"].astype(np.int64)
        elif {"masks", "graph"} <= arrays.keys():
            ids = to_global(arrays["masks"].astype(np.int64), arrays["graph"].astype(np.int64))
        else:
            raise ValueError(f"tracks need ids, or masks and graph; there are {', '.join(arrays)}")
        index = arrays.get("frame_index", np.arange(len(ids)))
        if ids.ndim != 3 or index.shape != (len(ids),) or (ids < 0).any():
            raise ValueError(f"ids must be (T, h, w), at least 0, and frame_index (T,); got {ids.shape}, {index.shape}")
        return cls(ids, index.astype(np.int64))

    def to_bytes(self) -> bytes:
        """As the contents of a `traj.npz`."""
        buffer = io.BytesIO()
        kind = np.uint16 if self.ids.max(initial=0) < 2**16 else np.int64
        np.savez_compressed(buffer, ids=self.ids.astype(kind), frame_index=self.frame_index)
        return buffer.getvalue()


@dataclass(frozen=True)
class Clip:
    """What a sample of a video set is: frames by number, and its trajectories if it has any."""

    video: Video | FrameArray
    tracks: Tracks | None = None


def to_local(ids: Ids) -> tuple[Ids, Ids]:
    """Global numbers to the released form: `masks` (T, h, w) numbered 1..n_t in each frame, and `graph` (M, T).

    graph[m, t] is the number that trajectory m + 1 has in frame t, 0 where it is absent.
    """
    masks, graph = np.zeros_like(ids), np.zeros((int(ids.max(initial=0)), len(ids)), np.int64)
    for t, frame in enumerate(ids):
        there = np.unique(frame[frame > 0])
        table = np.zeros(len(graph) + 1, np.int64)
        table[there] = np.arange(1, len(there) + 1)
        masks[t], graph[:, t] = table[frame], table[1:]
    return masks, graph


def to_global(masks: Ids, graph: Ids) -> Ids:
    """The released form to global numbers, exactly undoing `to_local`.

    Raises:
        ValueError: if the graph names a number that is not in the frame, or one twice.
    """
    ids = np.zeros_like(masks)
    for t, frame in enumerate(masks):
        rows = np.flatnonzero(graph[:, t])
        local = graph[rows, t]
        if len(np.unique(local)) < len(local) or local.max(initial=0) > frame.max(initial=0):
            raise ValueError(f"graph column {t} does not fit its masks: {local.tolist()}")
        table = np.zeros(int(frame.max(initial=0)) + 1, np.int64)
        table[local] = rows + 1
        ids[t] = table[frame]
    return ids


def from_rle(runs: Sequence[Mapping[int, Mapping[str, Any]]]) -> Ids:
    """COCO run lengths to global numbers (T, h, w).

    Args:
        runs: of each trajectory, by frame: {"size": [h, w], "counts": list, or COCO's compressed text}. Where two
            overlap the smaller one (in that frame) is kept: it lies in front more often.
    """
    frames = sorted({t for each in runs for t in each})
    height, width = next(iter(runs[0].values()))["size"]
    ids = np.zeros((frames[-1] + 1, height, width), np.int64)
    for t in frames:
        masks = [(m + 1, rle_mask(each[t])) for m, each in enumerate(runs) if t in each]
        for number, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
            ids[t][mask] = number
    return ids


def rle_mask(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """(h, w) bool of a COCO run-length code, column by column, runs of 0 and 1 in turn."""
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        counts = _uncompressed(counts.encode() if isinstance(counts, str) else counts)
    height, width = rle["size"]
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if len(values) != height * width:
        raise ValueError(f"run lengths of {len(values)} pixels for {height} x {width}")
    return values.reshape(width, height).T


def _uncompressed(text: bytes) -> list[int]:
    """COCO's text: numbers of 5 bits a byte, from the third on as differences to the one before the last."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            byte = text[place] - 48
            value |= (byte & 31) << shift
            more, place, shift = bool(byte & 32), place + 1, shift + 5
            if not more and byte & 16:
                value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


VIDEOS = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi"})
"""Files that are clips by their ending; animated pictures and folders of frames are clips where a table says so."""


def clip_file(path: Path) -> tuple[str, bytes]:
    """Extension and contents of a video file as a shard holds it.

    .mp4 and .webm stay as they are; other containers, animated WebP and GIF become `frames.npy`, and so does a folder
    of frames, in the order of their names.
    """
    extension = path.suffix.lower()
    if extension in (".mp4", ".webm"):
        return extension.removeprefix("."), path.read_bytes()
    if path.is_dir():
        images = [Image.open(p).convert("RGB") for p in sorted(path.iterdir())]
        frames = np.stack([np.asarray(image) for image in images])
    elif extension in (".webp", ".gif"):
        with Image.open(path) as image:
            frames = np.stack([_frame(image, k) for k in range(getattr(image, "n_frames", 1))])
    else:
        video = Video(path.read_bytes())
        frames = video.read(range(video.length))
    buffer = io.BytesIO()
    np.save(buffer, frames, allow_pickle=False)
    return "frames.npy", buffer.getvalue()


def _frame(image: Image.Image, number: int) -> Frames:
    image.seek(number)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    white.alpha_composite(rgba)
    return np.asarray(white.convert("RGB"))


def _needed_av() -> Any:
    try:
        return import_module("av")
    except ModuleNotFoundError as error:
        raise ValueError("reading videos needs PyAV: pip install 'manyviews[video]'") from error
