"""Pictures as a viewer shows them: upright, in sRGB, on white; a closed list of formats, sizes looked at first."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from viewshards.account import Question
from viewshards.extras import needed
from viewshards.limits import DEFAULT, Limits

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""
Ranges = Mapping[str, tuple[float, float]]
"""By kind of pixel (`int32`, `float`) the values that are black and white; a property of a whole data set."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
"""What Pillow may read. It knows others, some of which start a program (EPS: Ghostscript)."""
MAGIC = (
    ("jpg", 0, b"\xff\xd8\xff"), ("png", 0, b"\x89PNG\r\n\x1a\n"), ("webp", 8, b"WEBP"), ("gif", 0, b"GIF8"),
    ("bmp", 0, b"BM"), *(("tif", 0, mark) for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("ico", 0, b"\0\0\1\0"),
    ("jp2", 4, b"jP  \r\n\x87\n"), ("jp2", 0, b"\xff\x4f\xff\x51"),
    *(("avif", 4, b"ftyp" + brand) for brand in (b"avif", b"avis")),
    *(("heic", 4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
    *(("ppm", 0, b"P" + number) for number in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")),
)  # fmt: skip
"""Formats by the first bytes: what a picture is, whatever its name says."""
WHITE_AT_16_BITS = 65535
TAGS = (256, 257, 258, 262, 277, 284, 338, 339)
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = TAGS[2:]
ORIENTATION = 0x0112
TEXT_CHUNK = 2**24
"""Bytes of a PNG's colour profile or text; Pillow's own limit calls ordinary scans broken."""


def format_of(data: bytes) -> str | None:
    """The extension that fits the first bytes; None for no known picture."""
    return next((name for name, place, mark in MAGIC if data[place : place + len(mark)] == mark), None)


@contextmanager
def opened(source: bytes | Path, limits: Limits = DEFAULT, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """A picture by Pillow, its header read, its size checked, its pixels not yet unpacked.

    Raises:
        ValueError: for whatever goes wrong with it, also inside of the context.
    """
    start = source[:32] if isinstance(source, bytes) else _start(source)
    if format_of(start) == "heic":
        needed("pillow_heif", "heic", "a .heic picture").register_heif_opener()
        formats = ("HEIF",)
    known = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    # The limit below takes the place of Pillow's own, but for icons, which hold pictures of other sizes than they say.
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2 if format_of(start) == "ico" else None
    PngImagePlugin.MAX_TEXT_CHUNK = TEXT_CHUNK
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            limits.check("pixels", math.prod(image.size), f"a picture of {image.width} x {image.height} pixels")
            yield image
    except UnidentifiedImageError as error:  # whose text has an address in it
        raise ValueError(f"not a picture of a known format ({', '.join(formats)})") from error
    except (ValueError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:  # damaged pictures fail in any way
        raise ValueError(f"a picture that does not decode: {error or type(error).__name__}") from error
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = known


def jpeg(data: bytes, limits: Limits = DEFAULT, ranges: Ranges | None = None) -> Picture:
    """JPEG by libjpeg-turbo; one in CMYK or another colour space than sRGB by Pillow."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return picture(data, limits, ranges)
    limits.check("pixels", height * width, f"a picture of {width} x {height} pixels")
    orientation = 1
    for content in _segments(data):
        if content.startswith(b"Exif\0\0"):
            orientation = _orientation(content)
        elif content.startswith(b"ICC_PROFILE\0") and not _is_srgb(content):
            return picture(data, limits, ranges)
    try:
        return upright(np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB")), orientation)
    except ValueError:
        return picture(data, limits, ranges)


def picture(data: bytes, limits: Limits = DEFAULT, ranges: Ranges | None = None) -> Picture:
    """A picture of any format of the list: upright, in sRGB, on white where it is transparent; the first of several.

    16 bits are scaled by 257, whatever holds them.

    Args:
        data: its bytes. limits: of its size.
        ranges: what is black and white in pictures of 32 bits or floats, which say nothing of it themselves.

    Raises:
        ValueError: if it does not decode, or is of 32 bits or floats without a range.
    """
    values = samples(data, limits)
    if values is not None:
        return _in_srgb(_shown(values, ranges or {}), data, limits)
    with opened(data, limits) as image:
        image.load()
        exif = image.info.get("exif") if image.format != "TIFF" else None  # Pillow turns those itself
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            values = np.asarray(image).astype(np.uint16)
            shown = _shown(values, {})
            if isinstance(clear := image.info.get("transparency"), int):
                shown[values == clear] = 255
            shown = _in_srgb(shown, data, limits)
        else:
            shown = np.asarray(_coloured(image))
        return upright(shown, _orientation(exif) if isinstance(exif, bytes) else 1)


def samples(data: bytes, limits: Limits = DEFAULT) -> NDArray[Any] | None:
    """(H, W) or (H, W, C) numbers of a picture whose pixels Pillow would cut down: 32 bits, floats, 16 bits in colour.

    They are upright; the last of two or four bands is transparency. None for any other, which `picture` reads as it is.

    Raises:
        ValueError: if it does not decode.
    """
    try:
        return _samples(data, limits)
    except ValueError:
        raise
    except Exception as error:  # damaged headers fail in any way
        raise ValueError(f"a picture that does not decode: {error or type(error).__name__}") from error


def _samples(data: bytes, limits: Limits) -> NDArray[Any] | None:
    kind = format_of(data)
    if kind == "png" and data[24:25] == b"\x10" and data[25:26] != b"\0":
        width, height = struct.unpack(">II", data[16:24])
        limits.check("pixels", width * height, f"a picture of {width} x {height} pixels")
        with opened(data, limits) as image:
            image.load()  # what stands behind the pixels as well
            exif = image.info.get("exif")
        return _by_opencv(data, _orientation(exif) if isinstance(exif, bytes) else 1)
    tags = tiff_tags(data) if kind == "tif" else {}
    bands, bits = int(tags.get(SAMPLES_PER_PIXEL, 1)), np.atleast_1d(tags.get(BITS_PER_SAMPLE, 1)).tolist()
    if bands > 1 and max(bits) > 8:
        _check_tiff(tags, bands, bits, limits)
        upright_data, orientation = _turned_back(data)
        return _by_opencv(upright_data, orientation)
    if kind in ("tif", "ppm"):
        with opened(data, limits) as image:
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                if tags.get(PHOTOMETRIC) == 0:
                    raise ValueError("a TIFF of 32 bits or floats in which 0 is white")
                unsigned = image.mode == "I" and bits == [32] and tags.get(SAMPLE_FORMAT, 1) == 1
                return np.asarray(image).view(np.uint32) if unsigned else np.asarray(image)
            if image.mode.startswith("I;16") and kind == "tif":
                found = np.asarray(image).astype(np.uint16)
                if bits[0] < 16:  # 12 bits, say
                    found = np.rint(found * (WHITE_AT_16_BITS / (2 ** bits[0] - 1))).astype(np.uint16)
                return np.asarray(WHITE_AT_16_BITS - found) if tags.get(PHOTOMETRIC) == 0 else found
    if tags.get(SAMPLE_FORMAT) == 2 and max(bits) <= 8:
        raise ValueError("a TIFF of signed bytes")
    return None


def _check_tiff(tags: Mapping[int, Any], bands: int, bits: list[int], limits: Limits) -> None:
    """Raises ValueError for a TIFF of more than 8 bits in colour that OpenCV would not read as it is meant."""
    width, height = int(tags.get(256, 0)), int(tags.get(257, 0))
    limits.check("pixels", width * height, f"a picture of {width} x {height} pixels")
    limits.check("array_bytes", width * height * sum(bits) // 8, "bytes of a picture's pixels")
    if {*bits} - {16, 32} or len({*bits}) > 1:
        raise ValueError(f"a TIFF in colour of {max(bits)} bits")
    if tags.get(PLANAR, 1) != 1:
        raise ValueError("a TIFF whose bands of more than 8 bits lie in planes of their own")
    colours = {1: 1, 2: 3}.get(int(tags.get(PHOTOMETRIC, 2)))
    extra = np.atleast_1d(tags.get(EXTRA_SAMPLES, [])).tolist()
    if colours is None or bands - colours not in (0, 1) or (bands > colours and extra[:1] not in ([1], [2])):
        raise ValueError(
            f"a TIFF of {bands} bands that are not RGB, grey or transparency: pack it with --channels {bands}"
        )


def kind_of(values: NDArray[Any]) -> str:
    """`uint8`, `uint16`, or what `Ranges` are by: `int32` or `float`."""
    if values.dtype in (np.uint8, np.uint16):
        return str(values.dtype)
    return "float" if values.dtype.kind == "f" else "int32"


def upright(picture: Picture, orientation: int) -> Picture:
    """A picture turned and mirrored as its EXIF orientation says."""
    turn: dict[int, Callable[[Picture], Picture]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    return np.ascontiguousarray(turn[orientation](picture)) if orientation in turn else picture


def on_white(image: Image.Image) -> Image.Image:
    """RGB of a picture with transparent places."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    white.alpha_composite(rgba)
    return white.convert("RGB")


def _coloured(image: Image.Image) -> Image.Image:
    """RGB in sRGB."""
    profile = image.info.get("icc_profile")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not isinstance(profile, bytes) or not profile or _is_srgb(profile):
        return on_white(image) if transparent else image.convert("RGB")
    alpha = image.convert("RGBA").getchannel("A") if transparent else None
    shown = _to_srgb(image, profile)
    if alpha is not None:
        shown.putalpha(alpha)
        return on_white(shown)
    return shown


def _in_srgb(shown: Picture, data: bytes, limits: Limits) -> Picture:
    """A picture whose pixels were scaled here, by the profile of its file."""
    with opened(data, limits) as image:
        profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or _is_srgb(profile):
        return shown
    return np.asarray(_to_srgb(Image.fromarray(shown), profile))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        space = _space(profile)
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space]
        if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in ("1", "L", "LA")):
            raise ValueError("a profile of another colour space than the picture's")
        found = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), _transform(profile, mode))
    except (ImageCms.PyCMSError, ValueError, KeyError, OSError, TypeError):  # as viewers do with a broken profile
        return image.convert("RGB")
    return image.convert("RGB") if found is None else found


def _space(profile: bytes) -> str:
    return str(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space).strip()


@lru_cache(64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    # Profiles without tables for the perceptual intent fall back to the colorimetric one by themselves.
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(own, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)


def _is_srgb(profile: bytes) -> bool:
    found = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    return found and b"inear" not in profile and "inear".encode("utf-16-be") not in profile


def scaled(values: NDArray[Any], ranges: Ranges) -> NDArray[np.uint8]:
    """Numbers of any shape as bytes: bytes as they are, 16 bits by 257, others by the range of their kind.

    Raises:
        ValueError: without a range, and for numbers that are not finite.
    """
    if values.dtype == np.uint8:
        return values
    kind = kind_of(values)
    if kind != "uint16" and kind not in ranges:
        raise Question(f"a picture of {values.dtype} pixels, of which nothing says what is black and white: pack it "
                         "with --value-range LOW HIGH")  # fmt: skip
    if not np.isfinite(values).all():
        raise ValueError("a picture with pixels that are not finite")
    low, high = (0.0, float(WHITE_AT_16_BITS)) if kind == "uint16" else ranges[kind]
    share = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    out: NDArray[np.uint8] = np.rint(255 * share).astype(np.uint8)
    return out


def _shown(values: NDArray[Any], ranges: Ranges) -> Picture:
    """Numbers (H, W[, C]) as a picture (H, W, 3); the last of two or four is transparency, on white."""
    found = scaled(values, ranges)
    found = found if found.ndim == 3 else found[..., None]
    if found.shape[2] in (2, 4):
        alpha = found[..., -1:].astype(np.float64) / 255
        found = np.rint(found[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if found.shape[2] not in (1, 3):
        raise ValueError(f"a picture of {found.shape[2]} bands: pack it with --channels {found.shape[2]}")
    return np.ascontiguousarray(np.broadcast_to(found, (*found.shape[:2], 3)))


def _by_opencv(data: bytes, orientation: Any) -> NDArray[Any]:
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"a picture that does not decode: {error.err}") from error
    if found is None:
        raise ValueError("a picture of more than 8 bits in a form that is not read")
    if found.ndim == 3 and found.shape[2] in (3, 4):
        found = found[..., [2, 1, 0, 3][: found.shape[2]]]
    return upright(found, orientation if isinstance(orientation, int) else 1)


def tiff_tags(data: bytes) -> dict[int, Any]:
    """The numbers of the first directory of a TIFF that say what its pixels are; empty if it cannot be read."""
    try:
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:4] in (b"+\0", b"\0+") else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        found = {tag: tags[tag] for tag in TAGS if tag in tags}
    except Exception:  # damaged directories fail in any way; what opens the picture says how
        return {}
    return {tag: value for tag, value in found.items() if np.asarray(value).dtype.kind in "iu"}


def _turned_back(data: bytes) -> tuple[bytes, int]:
    """A TIFF without its orientation, which OpenCV heeds or not by its version, and the orientation."""
    place, form = _orientation_place(data) or (0, "")
    if not place:
        return data, 1
    (orientation,) = struct.unpack_from(form, data, place)
    return data[:place] + struct.pack(form, 1) + data[place + struct.calcsize(form) :], int(orientation)


def _segments(data: bytes) -> Iterator[bytes]:
    """Contents of the APP segments of a JPEG."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xE1 <= data[place + 1] <= 0xE2:
            yield data[place + 4 : place + 2 + length]
        place += 1 if data[place + 1] == 0xFF else 2 + length  # any number of fill bytes may stand before a marker


def _orientation(exif: bytes) -> int:
    """1 to 8; 1 where it is not said, or not readable."""
    tiff = exif.removeprefix(b"Exif\0\0")
    place, form = _orientation_place(tiff) or (0, "")
    return int(struct.unpack_from(form, tiff, place)[0]) if place else 1


def _orientation_place(tiff: bytes) -> tuple[int, str] | None:
    """Where the orientation stands in the directory of a TIFF, or EXIF, and in which form."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == ORIENTATION:
                form = order + ("I" if kind == 4 else "H")
                struct.unpack_from(form, tiff, entry + 8)
                return entry + 8, form
    except struct.error:
        pass
    return None


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(32)
