"""From the bytes of one file to a value: a closed list by extension, and nothing in it can run code.

`google.webp` is decoded as `webp`: the last part of an extension says the type, what stands before it names the view.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from viewshards.limits import DEFAULT, Limits
from viewshards.pictures import Picture, jpeg, picture
from viewshards.video import Video

KINDS = "biuf"
"""Arrays hold numbers: bool, whole, unsigned, float."""


def array(data: bytes, limits: Limits = DEFAULT) -> NDArray[Any]:
    """A `.npy` array of numbers, which is as large as its header says.

    Object arrays, which are pickles, are refused, and so is a header that asks for more than there is.
    """
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"an array of format version {version[0]}.{version[1]}")
    shape, is_fortran, kind = reader(file)
    if kind.kind not in KINDS:
        raise ValueError(f"an array of {kind}, expected numbers")
    size = math.prod(shape) * kind.itemsize
    limits.check("array_bytes", size, f"an array {shape} of {kind} in bytes")
    if len(data) - file.tell() != size or min(shape, default=0) < 0:
        raise ValueError(f"an array {shape} of {kind} takes {size} bytes, there are {len(data) - file.tell()}")
    found = np.frombuffer(data, kind, offset=file.tell()).copy() if size else np.empty(0, kind)
    return found.reshape(shape, order="F" if is_fortran else "C")


def array_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of a `.npz`, each unpacked when it is asked for, and then only so far as the limits go.

    Raises:
        ValueError: for what is no archive.
    """

    def __init__(self, data: bytes, limits: Limits = DEFAULT) -> None:
        self._zip, self._limits = zipfile.ZipFile(io.BytesIO(data)), limits
        self._parts = {part.filename.removesuffix(".npy"): part for part in self._zip.infolist()}

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts  # without unpacking it, as a mapping's own would

    def __getitem__(self, name: str) -> NDArray[Any]:
        part, most = self._parts[name], self._limits.array_bytes + 2**16  # and its header
        self._limits.check("array_bytes", part.file_size - 2**16, f"the array {name} in bytes")
        try:
            with self._zip.open(part) as file:
                data = file.read(min(part.file_size, most) + 1)  # what the archive says may not be so
        except Exception as error:  # damaged archives fail in their own ways
            raise ValueError(f"the array {name} does not unpack: {error}") from error
        if len(data) != part.file_size:
            raise ValueError(f"the array {name} has another size than its archive says")
        return array(data, self._limits)


def class_number(data: bytes, limits: Limits = DEFAULT) -> int:
    """A `.cls`: a whole number in digits; -1 is unknown."""
    digits = data.strip()
    if not (digits.isdigit() and len(digits) < 19) and digits != b"-1":  # of bytes these are 0 to 9 alone
        raise ValueError(f"expected a class number in digits, got {data[:40]!r}")
    number = int(digits)
    if number >= limits.classes:
        limits.check("classes", number + 1, "classes up to its number")
    return number


def class_name(data: bytes) -> str:
    """A `.cls` that holds the name of a class.

    Raises:
        ValueError: if it is blank, longer than 200 bytes, or no UTF-8.
    """
    if len(data) > 200 or not data.strip():
        raise ValueError(f"expected the name of a class, got {data[:40]!r}")
    return data.decode("utf-8-sig").strip()


def text(data: bytes, limits: Limits = DEFAULT) -> str:
    """A `.txt` in UTF-8."""
    limits.check("text_bytes", len(data), "bytes of a text")
    return data.decode()


def fields(data: bytes, limits: Limits = DEFAULT) -> Any:
    """A `.json`."""
    limits.check("json_bytes", len(data), "bytes of a .json")
    found = json.loads(data)
    if data.count(b"[") + data.count(b"{") > limits.json_depth:  # most have fewer, and need no look
        limits.check("json_depth", _depth(found), "lists and objects in each other")
    return found


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth


OTHER_PICTURES = (
    "png", "webp", "avif", "jp2", "j2k", "heic", "heif", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "ico",
)  # fmt: skip
DECODERS: dict[str, Callable[[bytes, Limits], Any]] = {
    "txt": text,
    "json": fields,
    "cls": class_number,
    "npy": array,
    "npz": Arrays,
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), jpeg),
    **dict.fromkeys(OTHER_PICTURES, picture),
    **dict.fromkeys(("mp4", "webm", "mkv", "mov", "avi", "m4v"), Video),
}
PICTURES = frozenset({"jpg", "jpeg", "jpe", "jfif", *OTHER_PICTURES})


__all__ = [
    "DECODERS",
    "PICTURES",
    "Arrays",
    "Picture",
    "array",
    "array_bytes",
    "class_name",
    "decode",
    "is_known",
    "kind",
]


def kind(extension: str) -> str:
    """The part of an extension that says the type: `google.webp` -> `webp`."""
    return extension.rpartition(".")[2].lower()


def is_known(extension: str) -> bool:
    """Whether a decoder for this extension is on the list."""
    return kind(extension) in DECODERS


def decode(extension: str, data: bytes, limits: Limits = DEFAULT) -> Any:
    """The value of a file.

    Raises:
        ValueError: for bytes that do not decode, or go beyond a limit, naming the extension.
    """
    decoder = DECODERS.get(kind(extension))
    if decoder is None:
        raise ValueError(f"no decoder for .{extension}; known: {', '.join(sorted(DECODERS))}")
    try:
        return decoder(data, limits)
    except Exception as error:  # every decoder fails in its own way on damaged bytes
        raise ValueError(f".{extension} does not decode: {error or type(error).__name__}") from error
