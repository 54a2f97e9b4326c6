"""Clips to pack: video files as they are, folders of frames, animated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from viewshards.account import system_file
from viewshards.decode import Picture, array_bytes
from viewshards.limits import DEFAULT, Limits
from viewshards.pictures import Ranges, format_of, on_white, opened, picture
from viewshards.sources.tree import natural
from viewshards.video import container_of

CONTAINERS = {"mov": "mp4 mov m4v", "matroska": "webm mkv", "avi": "avi"}
"""Extensions of the containers that are kept as they are."""
VIDEOS = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"})


def clip_of(name: str, data: bytes) -> tuple[str, bytes, list[str]]:
    """Extension and contents of a video file, which stays as it is, and what should be known of it.

    Raises:
        ValueError: if it is of no known container.
    """
    found = container_of(data)
    if found is None:
        raise ValueError("no clip of a known container: expected .mp4, .mov, .webm, .mkv or .avi by its contents")
    own, fitting = Path(name).suffix.lower().removeprefix("."), CONTAINERS[found].split()
    if own in fitting:
        return own, data, []
    return fitting[0], data, [f"clips read by their contents: named .{own}, in truth .{fitting[0]}"]


def frames_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures in a folder that is a clip, in natural order (`2` before `10`), and names of what else is there."""
    frames, others = [], []
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if system_file(path.name):
            continue
        if path.is_file() and is_picture(path):
            frames.append(path)
        else:
            others.append(path.name)
    return frames, others


def is_picture(path: Path) -> bool:
    """Whether a file is one by its contents, or by its name, so that a broken one is noticed."""
    with open(path, "rb") as file:
        return format_of(file.read(32)) is not None or path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")


def of_frames(paths: Sequence[Path], limits: Limits = DEFAULT, ranges: Ranges | None = None) -> tuple[str, bytes]:
    """`frames.npy` and its contents, of the pictures of a clip.

    Raises:
        ValueError: without any, for one that does not decode, and for several sizes, naming the file.
    """
    limits.check("frames", len(paths), "frames of a clip")
    frames: list[Picture] = []
    for path in paths:
        try:
            limits.check("file_bytes", path.stat().st_size, "bytes of a file")
            frames.append(picture(path.read_bytes(), limits, ranges))
        except ValueError as error:
            raise ValueError(f"frame {path.name}: {error}") from error
        limits.check("array_bytes", frames[0].nbytes * len(paths), "bytes of all frames")
        if frames[-1].shape != frames[0].shape:
            sizes = " and ".join(f"{frame.shape[1]} x {frame.shape[0]}" for frame in (frames[0], frames[-1]))
            raise ValueError(f"frames of several sizes in one clip: {paths[0].name} and {path.name} are {sizes}")
    if not frames:
        raise ValueError("no pictures in the folder")
    return "frames.npy", array_bytes(np.stack(frames))


def of_animation(data: bytes, limits: Limits = DEFAULT) -> tuple[str, bytes]:
    """`frames.npy` and its contents, of an animated picture."""
    with opened(data, limits) as image:
        count = getattr(image, "n_frames", 1)
        limits.check("frames", count, "frames of a clip")
        limits.check("array_bytes", 3 * count * image.width * image.height, "bytes of all frames")
        frames = list[Picture]()
        for number in range(count):
            image.seek(number)
            frames.append(np.asarray(on_white(image)))
    return "frames.npy", array_bytes(np.stack(frames))
