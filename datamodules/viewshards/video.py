"""Clips: decoded by the frame, from files or folders of frames, with the trajectories of what moves in them.

Tracks are a `traj.npz` beside the clip: `ids` (T, h, w), 0 for nothing, else the number of a trajectory, which is one
for the whole clip, and `frame_index` (T,), the source frames they belong to. They may be of any resolution.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from viewshards.extras import needed
from viewshards.limits import DEFAULT, Limits

Frames = NDArray[np.uint8]
"""(T, H, W, 3) uint8 RGB."""
Ids = NDArray[np.int64]
"""(T, h, w): trajectories by number, 0 for none."""


CONTAINERS = (("mov", slice(4, 8), b"ftyp|moov|mdat|free|wide|skip"), ("matroska", slice(0, 4), b"\x1aE\xdf\xa3"),
              ("avi", slice(8, 12), b"AVI "))  # fmt: skip
"""What FFmpeg may read, and how it is known. It knows play lists too, which name other files and addresses."""


def container_of(data: bytes) -> str | None:
    """The container by the first bytes: `mov` (.mp4 and .mov), `matroska` (.webm and .mkv), `avi`; None for others."""
    found = (name for name, place, marks in CONTAINERS if len(data) >= 12 and data[place] in marks.split(b"|"))
    return next(found, None)


class Video:
    """An encoded clip; frame k is the k-th that a player shows, at any frame rate. Frames are decoded when asked for.

    Args:
        data: bytes of an .mp4, .webm, .mkv, .mov or .avi file. limits: of frames and their pixels.

    Attributes:
        length: frames. fps: of the stream, on average. pixels: of a frame.
        times: (length,) seconds at which each frame is shown, rising from 0.

    Raises:
        ValueError: without a video stream, beyond a limit, or without PyAV.
    """

    def __init__(self, data: bytes, limits: Limits = DEFAULT) -> None:
        self._av, self._data, self._limits = needed("av", "video", "a clip"), data, limits
        self._container = container_of(data)
        with self._opened() as (file, stream):
            self.fps = float(stream.average_rate or 0)
            size = stream.codec_context.width, stream.codec_context.height
            self.pixels = size[0] * size[1]
            limits.check("pixels", self.pixels, f"frames of {size[0]} x {size[1]} pixels")
            # What an edit list cuts off is decoded and thrown away: no player shows it.
            packets = [packet for packet in file.demux(stream) if packet.size and not packet.is_discard]
            stamps, decoded = ([getattr(packet, name) for packet in packets] for name in ("pts", "dts"))
            base, codec = stream.time_base, stream.codec_context.name
            self._aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        if codec == "vp8":  # which has packets that are never shown, and do not say so
            with self._opened() as (file, stream):
                stamps = [frame.pts for frame in file.decode(stream)]
        self.length = len(stamps)
        limits.check("frames", self.length, "frames of a clip")
        if self.length < 1 or not 0 < self.fps < 1e6:
            raise ValueError("a video without frames")
        self._numbers = {stamp: k for k, stamp in enumerate(sorted(set(stamps) - {None}))}
        if len(self._numbers) < self.length or self._container == "avi":  # AVI has no times of presentation
            self._numbers = {}
        shown = list(self._numbers) or sorted(decoded if None not in decoded else range(self.length))
        self.times = (np.array(shown, np.float64) - shown[0]) * float(base or 0)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its stream; whatever goes wrong with them is a ValueError."""
        try:
            if self._container is None:
                raise ValueError(
                    "no clip of a known container: expected .mp4, .mov, .webm, .mkv or .avi by its contents"
                )
            with self._av.open(io.BytesIO(self._data), format=self._container) as file:
                stream = file.streams.best("video")  # a cover picture is a stream, too
                if stream is None:
                    raise ValueError("no video stream in it")
                stream.codec_context.thread_count = 1  # as all of a loader's work; threads do not outlive a fork
                yield file, stream
        except (ValueError, GeneratorExit):
            raise
        except Exception as error:  # PyAV's own errors are of many kinds
            raise ValueError(f"a clip that does not decode: {error or type(error).__name__}") from error

    def _frames(self, file: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Number and frame from where the container stands; where times do not say the number, from the start."""
        for k, frame in enumerate(file.decode(stream)):
            self._limits.check(
                "pixels", frame.width * frame.height, f"a frame of {frame.width} x {frame.height} pixels"
            )
            yield self._numbers.get(frame.pts, -1) if self._numbers else k, frame

    def read(self, wanted: Sequence[int]) -> Frames:
        """The frames of these numbers, in this order, turned as a player turns them.

        Decoding starts at the key frame before the first of them.

        Raises:
            ValueError: if a frame is not there, or does not decode.
        """
        missing, found = set(wanted), {}
        if any(not 0 <= number < self.length for number in missing):
            raise ValueError(f"frames 0 to {self.length - 1} can be read, {max(missing, key=abs)} was asked for")
        # Some containers seek past the frame that was asked for: then once more from the start.
        for seek in (True, False) if self._numbers else (False,):
            with self._opened() as (file, stream):
                if seek:
                    file.seek(list(self._numbers)[min(wanted)], stream=stream)
                for number, frame in self._frames(file, stream):
                    if number in missing:
                        found[number] = _shown(frame, self._aspect)
                        missing.discard(number)
                    if not missing:
                        break
            if not missing:
                break
        if missing:
            raise ValueError(f"frame {min(missing)} of {self.length} cannot be decoded")
        frames = [found[number] for number in wanted]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("frames of several sizes in one clip")
        return np.stack(frames)

    def check(self) -> None:
        """Decodes every frame once.

        Raises:
            ValueError: naming the first that is not there, or does not decode.
        """
        _check_whole(self._data, self._container)
        missing, sizes, others = set(range(self.length)), set(), 0
        with self._opened() as (file, stream):
            for number, frame in self._frames(file, stream):
                if frame.is_corrupt:
                    raise ValueError(f"frame {number} of {self.length} is damaged")
                others += number not in missing
                missing.discard(number)
                sizes.add((frame.width, frame.height))
        if len(sizes) > 1:
            raise ValueError("frames of several sizes in one clip")
        if missing:
            raise ValueError(f"frame {min(missing)} of {self.length} cannot be decoded")
        if others:
            raise ValueError(f"{others} frames more than the {self.length} that its packets name")


def _shown(frame: Any, aspect: float) -> Frames:
    """(H, W, 3) of a frame as a player shows it: by the shape of its pixels, turned and mirrored by its matrix."""
    pixels: Frames = frame.to_ndarray(format="rgb24", threads=1)
    if abs(aspect - 1) > 0.001:
        pixels = cv2.resize(pixels, (max(1, round(pixels.shape[1] * aspect)), pixels.shape[0]))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _check_whole(data: bytes, container: str | None) -> None:
    """Raises ValueError for a file that ends before what its own structure says; decoders take it for a shorter one."""
    end = len(data)
    if container == "avi":
        end = 8 + int.from_bytes(data[4:8], "little")
    elif container == "matroska" and (place := data.find(b"\x18\x53\x80\x67", 0, 4096)) >= 0:
        width = 9 - data[place + 4].bit_length()
        size = int.from_bytes(data[place + 4 : place + 4 + width], "big") & (1 << 7 * width) - 1
        end = place + 4 + width + size if size != (1 << 7 * width) - 1 else end  # all ones: not known
    elif container == "mov":
        end = 0
        while end + 8 <= len(data):
            size = int.from_bytes(data[end : end + 4], "big")
            size = int.from_bytes(data[end + 8 : end + 16], "big") if size == 1 else size
            if size < 8:  # 0: to the end of the file
                return
            end += size
    if end > len(data):
        raise ValueError(f"cut: it has {len(data)} bytes, its structure says {end}")


class FrameArray:
    """A clip that is an array (T, H, W, 3) already, behind the same interface."""

    def __init__(self, frames: NDArray[Any]) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"a clip is an array (T, H, W, 3) of bytes, got {frames.shape} of {frames.dtype}")
        self.frames, self.length = frames, len(frames)
        self.times: NDArray[np.float64] = np.arange(self.length, dtype=np.float64)

    def read(self, wanted: Sequence[int]) -> Frames:
        """The frames of these numbers."""
        return np.asarray(self.frames[list(wanted)])

    def check(self) -> None:
        """An array is whole."""


@dataclass(frozen=True)
class Tracks:
    """Trajectories of a clip.

    Attributes:
        ids: (T, h, w). frame_index: (T,) source frames.
    """

    ids: Ids
    frame_index: NDArray[np.int64]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], length: int | None = None, limits: Limits = DEFAULT) -> Tracks:
        """Of a `traj.npz`: global numbers (`ids`), or the released form (`masks` with numbers of each frame, `graph`).

        Args:
            arrays: of the file, of which only these are looked at. length: frames of the clip, if it is known.
            limits: of the numbers.

        Raises:
            ValueError: naming what is missing or does not fit.
        """
        if "ids" in arrays:
            ids = _numbers(arrays, "ids", 3, limits)
        elif "masks" in arrays and "graph" in arrays:
            masks, graph = _numbers(arrays, "masks", 3, limits), _numbers(arrays, "graph", 2, limits)
            if graph.shape[1] != len(masks):
                raise ValueError(f"graph must be (M, {len(masks)}), a column for each frame, got {graph.shape}")
            ids = to_global(masks, graph)
        else:
            raise ValueError(f"tracks need ids, or masks and graph; there are {', '.join(arrays)[:200]}")
        index = _numbers(arrays, "frame_index", 1, None) if "frame_index" in arrays else np.arange(len(ids))
        if 0 in ids.shape or index.shape != (len(ids),):
            raise ValueError(f"ids must be (T, h, w), and frame_index (T,); got {ids.shape}, {index.shape}")
        if length is not None and int(index.max()) >= length:
            raise ValueError(f"frame_index names frame {int(index.max())} of a clip of {length}")
        return cls(ids, index)

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


def _numbers(arrays: Mapping[str, NDArray[Any]], name: str, dimensions: int, limits: Limits | None) -> Ids:
    found = arrays[name]
    if found.ndim != dimensions or found.dtype.kind not in "iu" or (found.size and int(found.min()) < 0):
        raise ValueError(
            f"{name} must be an array of {dimensions} dimensions of whole numbers of at least 0, got {found.shape} of "
            f"{found.dtype}"
        )
    if found.size and int(found.max()) >= 2**62:
        raise ValueError(f"{name} has the number {int(found.max())}")
    if limits is not None:
        limits.check("array_bytes", 8 * found.size, f"bytes of {name} as whole numbers")
        limits.check("trajectories", int(found.max(initial=0)), f"numbers in {name}")
    return found.astype(np.int64)


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
        if len(np.unique(local)) < len(local) or local.max(initial=0) > frame.max(initial=0) or not frame.size:
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
