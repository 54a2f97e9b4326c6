"""From the bytes of one file to a value: a closed list by extension, and nothing in it can run code.

`google.webp` is decoded as `webp`: the last part of an extension says the type, what stands before it names the view.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from viewshards.video import Video

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""


def jpeg(data: bytes) -> Picture:
    """JPEG by libjpeg-turbo; a CMYK or otherwise odd one by PIL."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    except ValueError:
        return picture(data)


def picture(data: bytes) -> Picture:
    """PNG or WebP (or whatever PIL reads), put on white where it is transparent."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16") or image.mode == "I":
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            white.alpha_composite(rgba)
            return np.asarray(white.convert("RGB"))
        return np.asarray(image.convert("RGB"))


def array(data: bytes) -> NDArray[Any]:
    """A `.npy` array; object arrays, which are pickles, are refused."""
    return np.load(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]


def arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz`; object arrays are refused."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "jpg": jpeg,
    "jpeg": jpeg,
    "png": picture,
    "webp": picture,
    "txt": lambda data: data.decode(),
    "json": json.loads,
    "cls": lambda data: int(data),
    "npy": array,
    "npz": arrays,
    "mp4": Video,
    "webm": Video,
}
PICTURES = frozenset({"jpg", "jpeg", "png", "webp"})


def kind(extension: str) -> str:
    """The part of an extension that says the type: `google.webp` -> `webp`."""
    return extension.rpartition(".")[2].lower()


def is_known(extension: str) -> bool:
    """Whether a decoder for this extension is on the list."""
    return kind(extension) in DECODERS


def decode(extension: str, data: bytes) -> Any:
    """The value of a file.

    Raises:
        ValueError: for bytes that do not decode, naming the extension.
    """
    try:
        return DECODERS[kind(extension)](data)
    except KeyError:
        raise ValueError(f"no decoder for .{extension}; known: {', '.join(sorted(DECODERS))}") from None
    except Exception as error:  # every decoder fails in its own way on damaged bytes
        raise ValueError(f".{extension} does not decode: {error}") from error
