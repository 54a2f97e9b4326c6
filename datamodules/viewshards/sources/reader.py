"""From a file on disk to what a shard holds of it: a picture, a clip or a cloud, by its contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from viewshards.account import Question
from viewshards.limits import DEFAULT, Limits
from viewshards.pictures import (
    BITS_PER_SAMPLE,
    SAMPLE_FORMAT,
    Ranges,
    format_of,
    kind_of,
    opened,
    picture,
    samples,
    tiff_tags,
)
from viewshards.sources import clips, clouds
from viewshards.sources.bands import band_values, bands_of
from viewshards.sources.source import png
from viewshards.video import container_of

KEPT = {"jpg": "jpg jpeg", "png": "png", "webp": "webp", "avif": "avif", "jp2": "jp2 j2k", "heic": "heic heif"}
"""Formats whose bytes stay as they are, with their extensions; others become PNG, which loses nothing."""
IMAGES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".pfm", ".jp2", ".j2k", ".ico", ".avif", ".heic", ".heif", ".tga",
})  # fmt: skip
KINDS = {"image": IMAGES, "cloud": clouds.CLOUDS, "clip": clips.VIDEOS, "h5": frozenset({".h5", ".hdf5"})}
WEAK = frozenset({".txt", ".xyz", ".pts"})
"""Clouds only where nothing else is there: beside pictures they hold labels or landmarks."""
ANIMATIONS = frozenset({".gif", ".webp", ".apng"})
SNIFFED = frozenset({"jpg", "png", "webp", "gif", "tif", "jp2", "avif", "heic"})
"""Known by enough bytes to go by them alone."""
FITTING = (1.0, 255.0, 65535.0)
ANIMATED = "animations of which the first frame is kept; --kind clip packs all of them"


@dataclass(frozen=True)
class Reader:
    """How files become what a shard holds of them.

    Attributes:
        limits: how large they may be. ranges: of pictures of 32 bits and floats.
        kind: `clip` takes animated pictures for clips, `image` for pictures; None decides by the file.
        clouds: how arrays are understood as clouds. channels: bands of the pictures; None: what a viewer shows, RGB.
    """

    limits: Limits = DEFAULT
    ranges: Ranges = field(default_factory=dict)
    kind: str | None = None
    clouds: clouds.Layout = field(default_factory=clouds.Layout)
    channels: int | None = None

    def __call__(self, path: Path, frames: Sequence[Path] = ()) -> tuple[str, bytes, list[str]]:
        """Extension, contents, and what a user should know of it; `frames` are the pictures of a folder that is a clip.

        Raises:
            ValueError: if it does not decode, or is beyond a limit. Question: if it can be understood in several ways.
        """
        if frames:
            return *clips.of_frames(frames, self.limits, self.ranges), []
        self.limits.check("file_bytes", path.stat().st_size, "bytes of a file")
        data = path.read_bytes()
        if not data:
            raise ValueError("an empty file")
        suffix, format_ = path.suffix.lower(), format_of(data)
        if self.channels is not None:
            return bands_of(path.name, data, self.channels, self.limits, self.ranges)
        if format_ is None and (suffix in clips.VIDEOS or container_of(data)):
            if self.kind not in (None, "clip"):
                raise ValueError("a clip, by its contents")
            return clips.clip_of(path.name, data)
        if suffix in clouds.CLOUDS and format_ is None:
            return clouds.cloud_of(path.name, data, self.clouds, self.limits)
        if format_ and (
            self.kind == "clip" or (self.kind is None and suffix in ANIMATIONS and _is_animated(data, self.limits))
        ):
            return *clips.of_animation(data, self.limits), []
        return image_of(path.name, data, self.limits, self.ranges)


def is_animation(path: Path, suffix: str, limits: Limits = DEFAULT) -> bool:
    """Whether a file is an animated picture; of PNG and AVIF only where the name says so."""
    if suffix not in ANIMATIONS:
        return False
    try:
        limits.check("file_bytes", path.stat().st_size, "bytes of a file")
        return _is_animated(path.read_bytes(), limits)
    except (ValueError, OSError):  # said when it is packed
        return False


def kind_of_file(path: Path, suffix: str) -> str | None:
    """`image`, `clip`, `cloud` or `h5`, by its extension, or by its contents if that says nothing."""
    known = next((kind for kind, extensions in KINDS.items() if suffix in extensions), None)
    if known and suffix not in WEAK:
        return known
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError:
        return None
    if format_of(start) in SNIFFED:
        return "image"
    return "clip" if container_of(start) else known


def image_of(
    name: str, data: bytes, limits: Limits = DEFAULT, ranges: Ranges | None = None
) -> tuple[str, bytes, list[str]]:
    """Extension and contents of a picture, and what should be known of it; formats that shards do not hold become PNG.

    Raises:
        ValueError: if it does not decode.
    """
    format_, own = format_of(data), Path(name).suffix.lower().removeprefix(".")
    told = []
    if format_ in KEPT:
        fitting = KEPT[format_].split()
        if own not in (*fitting, "jpe", "jfif", "apng"):
            named = f"named .{own}" if own else "without an extension"
            told.append(f"pictures read by their contents: {named}, in truth .{format_}")
        if format_ in ("png", "webp", "avif") and _is_animated(data, limits):
            told.append(ANIMATED)
        return own if own in fitting else format_, data, told
    if format_ is None and own == "tga":  # which nothing in the file tells from noise
        with opened(data, limits, ("TGA",)) as image:
            return "png", png(image.convert("RGBA" if "A" in image.mode else "RGB")), []
    if format_ is None:
        raise ValueError("no picture of a known format by its contents")
    values = samples(data, limits)
    if values is not None:
        kind = kind_of(values)
        if kind in ("int32", "float") and own not in ("tif", "tiff", "pfm"):
            raise ValueError(f"pixels of {values.dtype} under the name .{own}, where no range is looked for: rename it")
        told.append(f"pictures of {values.dtype} brought to 8 bits")
    else:
        with opened(data, limits) as image:
            if getattr(image, "n_frames", 1) > 1:
                told.append(ANIMATED if format_ == "gif" else "files of several pages of which the first is kept")
            if image.mode.startswith("I;16"):
                told.append("pictures of uint16 brought to 8 bits")
    return "png", png(Image.fromarray(picture(data, limits, ranges))), told


def ranges_of(
    paths: Iterable[Path], given: tuple[float, float] | None, limits: Limits, channels: int | None = None
) -> tuple[Ranges, list[str]]:
    """What is black and white in a set's pictures of 32 bits and of floats, and how that was found.

    Args:
        paths: of the set's pictures. given: by the user. limits: how large they may be. channels: bands, if asked for.

    Raises:
        ValueError: if nothing was given, and the values fit none of [0, 1], [0, 255] and [0, 65535].
    """
    seen: dict[str, list[float]] = {}
    for path in paths:
        try:
            limits.check("file_bytes", path.stat().st_size, "bytes of a file")
            if path.suffix.lower() not in (".tif", ".tiff", ".pfm", ".npy") or not (channels or _may_need_range(path)):
                continue
            data = path.read_bytes()
            values = band_values(path.name, data, channels, limits) if channels else samples(data, limits)
        except (ValueError, OSError):  # said when it is packed
            continue
        kind = "uint8" if values is None else kind_of(values)
        if values is not None and values.size and kind in ("int32", "float") and np.isfinite(values).all():
            low, high = float(values.min()), float(values.max())
            before = seen.setdefault(kind, [low, high])
            seen[kind] = [min(low, before[0]), max(high, before[1])]
    if given is not None and not seen:
        raise ValueError("--value-range is of pictures of 32 bits or floats, and there is none: leave it out")
    if given is not None:
        return dict.fromkeys(seen, given), []
    ranges, told = {}, []
    for kind, (low, high) in seen.items():
        top = next((each for each in FITTING if low >= 0 and high <= each), None)
        if top is None:
            raise Question(
                f"pictures of {kind} pixels with values from {low:g} to {high:g}: say what is black and white by "
                f"--value-range LOW HIGH, such as --value-range {low:g} {high:g}"
            )
        ranges[kind] = 0.0, top
        told.append(f"pictures of {kind} pixels with values from {low:g} to {high:g}: 0 is black, {top:g} is white")
    return ranges, told


def _may_need_range(path: Path) -> bool:
    """Whether a picture may be of 32 bits or floats, by its header."""
    if path.suffix.lower() == ".pfm":
        return True
    with open(path, "rb") as file:
        start = file.read(8)
        if format_of(start) != "tif":
            return False
        file.seek(0)
        tags = tiff_tags(file.read())
    return max(np.atleast_1d(tags.get(BITS_PER_SAMPLE, 1)).tolist()) > 16 or SAMPLE_FORMAT in tags


def _is_animated(data: bytes, limits: Limits) -> bool:
    marks: dict[bytes, Callable[[], bool]] = {
        b"\x89PNG": lambda: 0 < data.find(b"acTL", 0, 2**16) < data.find(b"IDAT", 0, 2**20),
        b"RIFF": lambda: data[12:16] == b"VP8X" and bool(data[20] & 2),
    }
    if data[:4] in marks:
        return marks[data[:4]]()
    if data[4:12] == b"ftypavif":
        return False
    with opened(data, limits) as image:
        return getattr(image, "n_frames", 1) > 1
