"""Loads published weights into a backbone. The kind of file is recognised by its names; every tensor is accounted for.

Read are safetensors, pickles of tensors and plain types, and folders of Hugging Face, timm and `manyviews export`.
Within a file the network that its paper evaluates is taken: the EMA of a timm run, the teacher of DINO, iBOT and
DINOv2, the target encoder of I-JEPA and V-JEPA, the online encoder of MoCo, BYOL and their like; the other networks of
the file are reported. Heads, projectors, decoders and mask tokens of the network are left out by name; anything else
that is missing or left over in it is an error, and so are values that are no weights.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manyviews import foreign
from manyviews.backbones.published import OPENAI, State, of_open_clip, of_transformers

logger = logging.getLogger(__name__)
PREFERRED = (
    "state_dict_ema", "model_ema", "ema_model", "ema", "online_encoder", "target_encoder", "teacher", "backbone",
    "base_encoder", "encoder_q", "teacher_backbone", "encoder", "MAE_encoder", "student_backbone", "student", "trunk",
)  # fmt: skip
"""Parts of names, in the order in which a network under them is taken where several fit equally well."""
BACKBONE, TEACHER = "state_dict.backbone.", "state_dict.teacher."
"""Beginnings of names in a checkpoint of ours: one of the two is what its method has evaluated."""
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DataParallel, DDP, torch.compile, FSDP and activation checkpointing put into names."""
LEFT_OUT = re.compile(
    r"(?:head|fc|classifier|pooler|lm_head|head_dist|heads|projector|projection_head|prototypes)(?:\.|$)"
    r"|decoder|mask_token$|masked_embed$|increase_dim|norm_head|dino_head|ibot_head"
)
"""Beginnings of names inside a network that a headless encoder has no place for."""
SCALAR = np.float64(0).__reduce__()[0]  # by which numpy's numbers are pickled, under two names
HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, np.dtype,
    (SCALAR, "numpy._core.multiarray.scalar"), (SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
]  # fmt: skip
"""Beside tensors and plain types: what training scripts keep in their checkpoints, and no code runs for."""


@dataclass
class Account:
    """Where the tensors of a file went.

    Attributes:
        file: read. source: the part of it that was taken, as its names begin; may be empty.
        used: how many went into the backbone. dropped: groups of names that did not, and how many of each.
    """

    file: Path
    source: str
    used: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        part = f" of {self.source}" if self.source else ""
        rest = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in self.dropped.items())
        return f"{self.file}: {self.used} tensors{part} used" + (f"; not used: {rest}" if rest else "; none left over")


_reading = True


@contextmanager
def not_read() -> Iterator[None]:
    """Builds backbones without reading published weights: a checkpoint of the run has theirs, the file may be gone."""
    global _reading
    before, _reading = _reading, False
    try:
        yield
    finally:
        _reading = before


def reads() -> bool:
    """Whether published weights are read."""
    return _reading


def load_weights(backbone: nn.Module, path: str | None) -> Account | None:
    """Loads published weights into a backbone. Does nothing without a path.

    A backbone whose names are not those of the files it stands for has an attribute `published_names` to find a
    headless state by, and a method `converted(state, about)` that gives its own state for that one, and the names of
    what it has no use for.

    Returns:
        Where the tensors went; None without a path, and inside `not_read`.

    Raises:
        FileNotFoundError: without the file. ValueError: for what is no file of weights, or of another network: naming
            what is missing and what is left over.
    """
    if path is None or not reads():
        return None
    file = Path(path).expanduser()
    everything, about = read(file)
    names = set(getattr(backbone, "published_names", None) or backbone.state_dict())
    aside = about["aside"]
    meant = {name: value for name, value in everything.items() if not aside or not name.startswith(aside)}
    source, state = chosen(meant, names, str(file))
    kept = {name: value for name, value in state.items() if name in names or not LEFT_OUT.match(name)}
    _check_values(kept, file)
    converted = getattr(backbone, "converted", None)
    try:
        mine, unused = converted(kept, about) if converted is not None else (kept, set())
        backbone.load_state_dict(mine)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except (RuntimeError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"{file}: {_misfit(kept, names, error)}") from error
    left = [f"{source}{name}" for name in state if name not in kept or name in unused]
    others = [name for name in everything if not name.startswith(source)]
    dropped = _groups(left, source.count(".") + 1) | _groups(others, max(1, source.count(".")))
    account = Account(file, source.rstrip("."), len(kept) - len(unused), dropped)
    logger.warning("%s", account)
    return account


def read(path: Path) -> tuple[State, dict[str, Any]]:
    """All tensors of a file or folder by dotted name, and what is said beside them (a folder's `config.json`).

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
    """
    about: dict[str, Any] = {}
    if path.is_dir() and (path / "config.json").is_file():
        about = foreign.read_json(path / "config.json", dict[str, foreign.Unchecked])
    about["aside"] = ""
    state: State = {}
    for file in _files(path) if path.is_dir() else [path]:
        content = _content(file)
        if isinstance(content, Mapping) and foreign.CONFIG_KEY in content:
            about["aside"] = TEACHER if content.get("evaluated", "backbone") == "backbone" else BACKBONE
        state |= {WRAPPERS.sub("", name): value for name, value in _flat(content)}
    if not state:
        raise ValueError(f"{path}: holds no tensors by name")
    if state.keys() >= OPENAI:
        about["quick_gelu"] = True
    return of_open_clip(of_transformers(state)), about


FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")


def _files(folder: Path) -> list[Path]:
    """The files of weights in a folder of open_clip, Hugging Face, timm or our own."""
    for name in FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            said = foreign.read_json(index, {"weight_map": dict[str, str], "metadata": foreign.Unchecked})
            parts = sorted(set(said.get("weight_map", {}).values()))
            if any(Path(part).name != part for part in parts):
                raise ValueError(f"{index}: names a file outside of its folder")
            return [folder / part for part in parts]
    raise FileNotFoundError(f"{folder}: none of {', '.join(FILES)} in it")


def _content(path: Path) -> Any:
    """What a file holds, whose first bytes tell which kind it is: names lie."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights; nothing is ever downloaded")
    with path.open("rb") as f:
        head = f.read(9)
    is_pickle = head[:2] in (b"PK", b"\x80\x02")
    if head[8:] != b"{" and (is_pickle or path.suffix != ".safetensors"):
        return _unpickled(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not readable as safetensors ({error})") from error


def _unpickled(path: Path) -> Any:
    try:  # the open file, since torch takes another reader for some names
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as f:
            return torch.load(f, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        try:
            with path.open("rb") as f:
                others = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(f))
        except Exception:  # not a checkpoint at all; torch has no kind of its own for that
            others = []
        # Torch's own words are not repeated: they advise to load it all the same.
        what = f"holds more than weights ({', '.join(others[:5])}), and loading it could run code" if others else (
            "no file of weights and nothing else, or damaged"
        )  # fmt: skip
        raise ValueError(f"{path}: {what}: save its state_dict() alone, best as safetensors") from error


def _flat(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Mapping) and depth < 4:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                yield prefix + key, value
            elif isinstance(key, str):
                yield from _flat(value, f"{prefix}{key}.", depth + 1)


def chosen(everything: State, names: set[str], where: str) -> tuple[str, State]:
    """The beginning of the names of the network in a file that has the given names, and its tensors without it.

    Raises:
        ValueError: if there is none, or two that fit equally well.
    """
    found = Counter(
        name[: len(name) - len(mine)]
        for name in everything
        for mine in _endings(name)
        if mine in names and not mine.endswith("num_batches_tracked")  # which an average may lack
    )
    if not found:
        some = ", ".join(sorted(everything)[:3])
        raise ValueError(f"{where}: none of its {len(everything)} names, such as {some}, is one of the backbone")
    most = max(found.values())
    best = sorted((prefix for prefix, count in found.items() if count == most), key=_rank)
    if len(best) > 1 and _rank(best[0])[0] == _rank(best[1])[0]:
        raise ValueError(
            f"{where}: {best[0].rstrip('.') or 'the whole file'!r} and {best[1].rstrip('.')!r} fit equally well; save "
            "the one that you mean alone"
        )
    prefix = best[0]
    return prefix, {name.removeprefix(prefix): value for name, value in everything.items() if name.startswith(prefix)}


def _check_values(state: State, file: Path) -> None:
    """Raises ValueError for numbers that are no weights."""
    for name, value in state.items():
        if value.is_complex() or value.dtype in (torch.int8, torch.uint8):
            raise ValueError(f"{file}: {name} is of {value.dtype}: quantised and complex weights are not read")
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise ValueError(f"{file}: {name} holds values that are not finite")


def _endings(name: str) -> Iterator[str]:
    parts = name.split(".")
    for start in range(len(parts)):
        yield ".".join(parts[start:])


def _rank(prefix: str) -> tuple[int, int]:
    words = prefix.split(".")
    return min([PREFERRED.index(word) for word in words if word in PREFERRED], default=len(PREFERRED)), len(prefix)


def _misfit(state: State, names: set[str], error: Exception) -> str:
    missing, left = sorted(names - state.keys()), sorted(state.keys() - names)
    said = [f"it lacks {', '.join(missing[:4])}" + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")]
    said += [f"it has {', '.join(left[:4])}" + (f" and {len(left) - 4} more" if len(left) > 4 else "") + " besides"]
    words = " and ".join(part for part, there in zip(said, (missing, left), strict=True) if there)
    reason = " ".join(str(error).split())[:300]
    return f"not of this backbone: {words + '; ' if words else ''}{reason}"


def _groups(names: list[str], depth: int) -> dict[str, int]:
    """How many names there are, those that share their first `depth` parts together, as `projector.*`."""
    begin = {name: ".".join(name.split(".")[:depth]) for name in names}
    counts, single = Counter(begin.values()), {top: name for name, top in begin.items()}
    return {f"{top}.*" if count > 1 else single[top]: count for top, count in counts.items()}
