"""Pictures of any number of bands: TIFF, arrays, and what Pillow reads."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewshards.decode import array, array_bytes
from viewshards.extras import needed
from viewshards.limits import DEFAULT, Limits
from viewshards.pictures import Ranges, format_of, opened, scaled

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def bands_of(
    name: str, data: bytes, channels: int, limits: Limits = DEFAULT, ranges: Ranges | None = None
) -> tuple[str, bytes, list[str]]:
    """`bands.npy` and its contents: (H, W, channels) bytes of a picture with so many bands.

    Raises:
        ValueError: if it has another number of bands, or does not decode.
    """
    values = band_values(name, data, channels, limits)
    return "bands.npy", array_bytes(scaled(values, ranges or {})), []


def band_values(name: str, data: bytes, channels: int, limits: Limits = DEFAULT) -> NDArray[Any]:
    """(H, W, channels) numbers as the file holds them.

    Raises:
        ValueError: if it has another number of bands, or does not decode.
    """
    kind = format_of(data)
    if kind == "tif":
        found = _tiff(data, limits)
    elif kind is None and name.lower().endswith(".npy"):
        try:
            found = array(data, limits)
        except Exception as error:  # damaged headers fail in any way
            raise ValueError(f"an array that does not decode: {error or type(error).__name__}") from error
    else:
        with opened(data, limits) as image:
            if channels not in MODES or (image.mode, channels) not in {(mode, n) for n, mode in MODES.items()}:
                raise ValueError(f"a picture of mode {image.mode}, --channels {channels} was asked for")
            found = np.asarray(image)
    found = found[..., None] if found.ndim == 2 else found
    if found.ndim == 3 and found.shape[2] != channels and found.shape[0] == channels:
        found = found.transpose(1, 2, 0)
    if found.ndim != 3 or found.shape[2] != channels:
        raise ValueError(f"an array {found.shape}, where --channels {channels} asks for (H, W, {channels})")
    limits.check("pixels", math.prod(found.shape[:2]), f"a picture of {found.shape[1]} x {found.shape[0]} pixels")
    return found


def _tiff(data: bytes, limits: Limits) -> NDArray[Any]:
    tifffile = needed("tifffile", "bands", "the bands of a TIFF")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            limits.check("array_bytes", math.prod(series.shape) * series.dtype.itemsize, "bytes of a picture's bands")
            return np.asarray(series.asarray())
    except Exception as error:  # tifffile's errors are of many kinds
        raise ValueError(f"a TIFF that does not decode: {error or type(error).__name__}") from error
