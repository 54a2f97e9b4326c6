"""The one way from the bytes of a sample to what is trained on: decoded, and checked for what training needs of it.

Training, evaluation, `viewshards verify`, `inspect`, contact sheets and trackers all go through it, so that what one of
them accepts no other stumbles over.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from viewshards.decode import PICTURES, Picture, class_name, decode, kind
from viewshards.limits import DEFAULT, Limits
from viewshards.video import Clip, FrameArray, Tracks, Video
from viewshards.views.points import Cloud, checked

CLIPS = frozenset({"mp4", "webm", "mkv", "mov", "avi", "m4v", "npy"})
FILES = {"image": PICTURES, "points": frozenset({"npy"}), "video": CLIPS}
"""What files hold the natural views of a modality; pictures also in `BANDS`."""
BANDS = "bands.npy"
"""A picture of any number of bands: (H, W, C) bytes."""
TRACKS = "traj.npz"
SAME = re.compile(r"-1|[0-9]{1,18}")
Value = TypeVar("Value")


class BrokenSample(ValueError):
    """A sample that cannot be used: its files do not decode, or are not what training needs."""


class Contents:
    """The files of one sample, each decoded when it is asked for.

    Args:
        files: bytes by extension. limits: how large what they hold may be. labels: fields of the `.json` that are
            labels. classes: numbers of classes by name, by label field, of the fields whose files hold names.

    Every property and method raises BrokenSample, naming the file and what is wrong with it, and nothing else.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        limits: Limits = DEFAULT,
        labels: tuple[str, ...] = (),
        classes: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self.files, self.limits, self.labels, self.classes = files, limits, labels, classes or {}

    def picture(self, extension: str) -> Picture:
        """(H, W, 3) bytes; of `bands.npy` (H, W, C)."""
        return self._of(extension, _bands if extension.endswith(BANDS) else lambda value: value)

    def cloud(self, extension: str) -> Cloud:
        """(N, 3) float32, finite, N >= 1."""
        return self._of(extension, checked)

    def clip(self, extension: str) -> Clip:
        """Frames by number, and the trajectories beside them, if there are any."""
        found = self._of(extension, lambda value: value if isinstance(value, Video) else FrameArray(value))
        if TRACKS not in self.files:
            return Clip(found)
        return Clip(found, self._of(TRACKS, lambda arrays: Tracks.of(arrays, found.length, self.limits)))

    @property
    def label(self) -> int:
        """The class number of `.cls`; -1 without."""
        return self.number("cls")

    def number(self, extension: str) -> int:
        """The class number of a `.cls`, or of a `.NAME.cls`; -1 without."""
        if extension not in self.files:
            return -1
        if extension not in self.classes:
            return self._of(extension, int)
        try:
            name = class_name(self.files[extension])
            return -1 if name == "-1" else self.classes[extension][name]
        except (KeyError, ValueError) as error:
            raise BrokenSample(f".{extension}: no class of the manifest: {self.files[extension][:100]!r}") from error

    @cached_property
    def caption(self) -> str | None:
        """The text of `.txt`; None without, and where it is blank."""
        said = self._of("txt", str) if "txt" in self.files else ""
        return said if said.strip() else None

    @cached_property
    def about(self) -> dict[str, Any]:
        """The `.json`; empty without. What training reads of it is of the right type."""
        return self._of("json", lambda value: _about(value, self.labels)) if "json" in self.files else {}

    @property
    def group(self) -> int:
        """The `same` of the `.json`, by which known duplicates carry one number; -1 without."""
        return int(self.about.get("same", -1))

    @property
    def file_name(self) -> str:
        """The name of its file in what was packed, of several all; empty if it is not known."""
        found = self.about.get("file_name", "")
        return ", ".join(map(str, found.values())) if isinstance(found, dict) else str(found)

    @property
    def fields(self) -> dict[str, Any]:
        """`txt` and `json`, as captions are looked for in them."""
        return {"json": self.about, **({} if self.caption is None else {"txt": self.caption})}

    def numbers(self, name: str) -> NDArray[np.float32]:
        """A numeric field of the `.json`."""
        if name not in self.about:
            raise BrokenSample(f"its .json has no field {name!r}")
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
                found = np.asarray(self.about[name], np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise BrokenSample(f"field {name!r} of its .json is not of numbers: {error}") from error
        if not np.isfinite(found).all():
            raise BrokenSample(f"field {name!r} of its .json is not finite")
        return found

    def problems(self) -> list[str]:
        """What is wrong with any of the files, every frame of clips included; empty: nothing."""
        found: list[str] = []
        for extension in self.files:
            try:
                self.check(extension)
            except BrokenSample as error:
                found.append(str(error))
        return found

    def check(self, extension: str) -> None:
        """Raises BrokenSample for what is wrong with one file, if anything is; of a clip every frame is decoded."""
        if is_picture(extension):
            self.picture(extension)
        elif extension == "json":
            _ = self.about
        elif kind(extension) == "cls":
            self.number(extension)
        elif extension == "txt":
            _ = self.caption
        elif extension == TRACKS:  # looked at beside its clip; without one alone
            if not any(self._is_clip(each) for each in self.files):
                self._of(extension, lambda arrays: Tracks.of(arrays, None, self.limits))
        elif extension == "points.npy":
            self.cloud(extension)
        elif self._is_clip(extension):
            clip = self.clip(extension)
            self._of(extension, lambda _: clip.video.check())
        elif kind(extension) == "npy" and not self._has_other_views():
            self.cloud(extension)
        else:
            self._of(extension, lambda value: value)

    def _has_other_views(self) -> bool:
        """Whether it is a sample of pictures or clips, beside which an array may be anything."""
        return any(each == "points.npy" or is_picture(each) or self._is_clip(each) for each in self.files)

    def _is_clip(self, extension: str) -> bool:
        if kind(extension) in CLIPS - {"npy"}:
            return True
        return kind(extension) == "npy" and self._of(extension, lambda value: value.ndim) == 4

    def _of(self, extension: str, use: Callable[[Any], Value]) -> Value:
        try:
            value = decode(extension, self.files[extension], self.limits)
        except ValueError as error:
            raise BrokenSample(str(error)) from error
        try:
            return use(value)
        except Exception as error:  # whatever a wrong value does to what reads it
            raise BrokenSample(f".{extension}: {error or type(error).__name__}") from error


def is_picture(extension: str) -> bool:
    """Whether a file is a picture."""
    return kind(extension) in PICTURES or extension.endswith(BANDS)


def _bands(value: NDArray[Any]) -> Picture:
    if value.ndim != 3 or value.dtype != np.uint8 or not value.size:
        raise ValueError(f"bands are an array (H, W, C) of bytes, got {value.shape} of {value.dtype}")
    return value


def _about(value: Any, labels: tuple[str, ...]) -> dict[str, Any]:
    """A `.json` whose known fields are what they should be.

    Raises:
        ValueError: naming the field. Other JSON than an object has no fields, and is not wrong.
    """
    if not isinstance(value, dict):
        return {}
    same = -1 if value.get("same") in (None, "") else value["same"]
    same = int(same) if isinstance(same, float) and same.is_integer() else same  # as pandas writes them
    if not SAME.fullmatch(str(same)) or not isinstance(same, int | str):
        raise ValueError(f"same must be a whole number, got {same!r:.100}")
    value["same"] = int(same)
    captions = texts(value, "captions")
    for name in ("hard_captions", "languages"):
        beside = value.get(name)
        if beside and (not isinstance(beside, list) or len(beside) != len(captions)):
            raise ValueError(f"{name} must be a list as long as captions ({len(captions)}), got {beside!r:.100}")
    for offered in value.get("hard_captions") or []:
        if not isinstance(offered, list) or not all(isinstance(each, str) for each in offered):
            raise ValueError(f"hard_captions must hold a list of texts for each caption, got {offered!r:.100}")
    for spoken in value.get("languages") or []:
        if spoken is not None and not isinstance(spoken, str):
            raise ValueError(f"languages must be texts, got {spoken!r:.100}")
    if "cases" in value:
        _check_cases(value["cases"])
    for name in labels:
        if isinstance(value.get(name), list | dict):
            raise ValueError(f"the label {name} must be a text or a number, got {value[name]!r:.100}")
    return value


def caption_number(caption: str) -> int:
    """62 bits of a hash of a caption: captions that are equal but for blanks have the same."""
    return int.from_bytes(hashlib.sha256(" ".join(caption.split()).encode()).digest()[:8]) >> 2


def captions_of(files: Mapping[str, bytes]) -> list[str]:
    """All captions in a sample's `.txt` and `.json`; none of what does not decode, which another check tells."""
    found: list[str] = []
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        found += [decode("txt", files["txt"])] if "txt" in files else []
        if b'"captions"' in files.get("json", b""):
            found += texts(_about(decode("json", files["json"]), ()), "captions")
    return [caption for caption in found if caption.strip()]


def languages_of(data: bytes) -> list[str]:
    """The languages of a `.json` file's captions; none of what does not decode, which is another check's business."""
    if b'"languages"' not in data:
        return []
    try:
        return spoken_in(_about(decode("json", data), ()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []


def spoken_in(about: Mapping[str, Any]) -> list[str]:
    """The languages of a sample's captions that are not blank, sorted."""
    captions, languages = texts(about, "captions"), about.get("languages") or []
    said = {spoken for caption, spoken in zip(captions, languages, strict=False) if spoken and caption.strip()}
    return sorted(said)


def texts(value: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a field that holds one, a list of them, or nothing.

    Raises:
        ValueError: if it holds anything else.
    """
    found = value.get(name)
    captions = [found] if isinstance(found, str) else found or []
    if not isinstance(captions, list) or not all(isinstance(each, str) for each in captions):
        raise ValueError(f"{name} must be a text or a list of texts, got {found!r:.100}")
    return captions


def _check_cases(cases: Any) -> None:
    is_right = isinstance(cases, dict) and isinstance(cases.get("true"), str)
    for offered in cases.values() if is_right else ():
        listed = [offered] if isinstance(offered, str) else offered
        is_right &= isinstance(listed, list) and bool(listed) and all(isinstance(each, str) for each in listed)
    if not is_right:
        raise ValueError(f"cases must be a true caption and false ones by kind, got {cases!r:.100}")
