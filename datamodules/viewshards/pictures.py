"""Pictures: a closed list of formats, sizes looked at before anything is unpacked."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from viewshards.limits import DEFAULT, Limits

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may read. It knows others, some of which start a program (EPS: Ghostscript)."""


@contextmanager
def opened(source: bytes | Path, limits: Limits = DEFAULT) -> Iterator[Image.Image]:
    """A picture by Pillow, its header read, its size checked, its pixels not yet unpacked.

    Raises:
        ValueError: for whatever goes wrong with it, also inside of the context.
    """
    known, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit below takes the place of Pillow's own
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            limits.check("pixels", math.prod(image.size), f"a picture of {image.width} x {image.height} pixels")
            yield image
    except UnidentifiedImageError as error:  # whose text has an address in it
        raise ValueError(f"not a picture of a known format ({', '.join(FORMATS)})") from error
    except (ValueError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:  # damaged pictures fail in any way
        raise ValueError(f"a picture that does not decode: {error or type(error).__name__}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = known


def jpeg(data: bytes, limits: Limits = DEFAULT) -> Picture:
    """JPEG by libjpeg-turbo; a CMYK or otherwise odd one by PIL."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return picture(data, limits)
    limits.check("pixels", height * width, f"a picture of {width} x {height} pixels")
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    except ValueError:
        return picture(data, limits)


def picture(data: bytes, limits: Limits = DEFAULT) -> Picture:
    """A picture of any format of the list, put on white where it is transparent."""
    with opened(data, limits) as image:
        if image.mode == "F":
            raise ValueError("a picture of floats, whose range is not known")
        if image.mode.startswith("I;16") or image.mode == "I":
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            white.alpha_composite(rgba)
            return np.asarray(white.convert("RGB"))
        return np.asarray(image.convert("RGB"))
