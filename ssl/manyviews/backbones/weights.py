"""Published weights into a backbone: whose they are is told from their names, and every one of them is accounted for.

Read are safetensors, pickles of tensors and plain types, and folders of Hugging Face, timm and `manyviews export`.
Within a file the network that its paper evaluates is taken: the EMA of a timm run, the teacher of DINO, iBOT and
DINOv2, the target encoder of I-JEPA and V-JEPA, the online encoder of MoCo, BYOL and their like. Heads, projectors,
decoders and mask tokens are left out by name; anything else that is missing or left over is an error.
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

logger = logging.getLogger(__name__)
State = dict[str, Tensor]

PREFERRED = (
    "state_dict_ema", "model_ema", "target_encoder", "teacher", "backbone", "base_encoder", "encoder_q",
    "teacher_backbone", "encoder", "MAE_encoder", "student_backbone", "student", "trunk",
)  # fmt: skip
"""Parts of names, in the order in which a network under them is taken where several fit equally well."""
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DataParallel, DDP, torch.compile, FSDP and activation checkpointing put into names."""
LEFT_OUT = re.compile(
    r"(?:head|fc|classifier|pooler|lm_head|head_dist|heads|projector|projection_head|prototypes)(?:\.|$)"
    r"|decoder|mask_token$|masked_embed$|increase_dim|norm_head|dino_head|ibot_head"
)
"""Beginnings of names inside a network that a headless encoder has no place for."""
HARMLESS = [
    argparse.Namespace, pathlib.PosixPath, np.dtype, getattr(np, "_core").multiarray.scalar,  # noqa: B009
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
    """While backbones are built whose weights come from a checkpoint of their run: published ones need not be there."""
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

    Raises:
        FileNotFoundError: without the file. ValueError: for what is no file of weights, or of another network: naming
            what is missing and what is left over.
    """
    if path is None or not reads():
        return None
    file = Path(path)
    everything, about = read(file)
    names = set(getattr(backbone, "published_names", None) or backbone.state_dict())
    source, state = chosen(everything, names, str(file))
    kept = {name: value for name, value in state.items() if name in names or not LEFT_OUT.match(name)}
    converted = getattr(backbone, "converted", None)
    try:
        mine, unused = converted(kept, about) if converted is not None else (kept, set())
        backbone.load_state_dict(mine)
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
    state: State = {}
    for file in _files(path) if path.is_dir() else [path]:
        state |= {WRAPPERS.sub("", name): value for name, value in _flat(_content(file))}
    if not state:
        raise ValueError(f"{path}: holds no tensors by name")
    if state.keys() >= OPENAI:
        about["quick_gelu"] = True
    return of_open_clip(of_transformers(state)), about


def _content(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights; nothing is ever downloaded")
    if path.suffix != ".safetensors":
        return _unpickled(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not readable as safetensors ({error})") from error


def _files(folder: Path) -> list[Path]:
    """The files of weights in a folder of Hugging Face, timm or our own."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            said = foreign.read_json(index, {"weight_map": dict[str, str], "metadata": foreign.Unchecked})
            parts = sorted(set(said.get("weight_map", {}).values()))
            if any(Path(part).name != part for part in parts):
                raise ValueError(f"{index}: names a file outside of its folder")
            return [folder / part for part in parts]
    raise FileNotFoundError(f"{folder}: no model.safetensors or pytorch_model.bin in it")


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        try:
            others = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:  # not a checkpoint at all
            others = []
        what = f"holds more than weights ({', '.join(others[:5])}), and loading it could run code" if others else (
            f"no file of weights and nothing else ({' '.join(str(error).split())[:200]})"
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
        if mine in names and name.endswith(mine)
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


BLOCK = r"(?:encoder\.|model\.)?layers?\.(?P<block>\d+)\."
QKV = re.compile(BLOCK + r"attention\.(?:attention\.)?(?P<which>query|key|value|q_proj|k_proj|v_proj)\.(?P<kind>\w+)")
RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (BLOCK, r"blocks.\g<block>."),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"^embeddings\.", ""),
        (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"^layernorm\.", "norm."),
        (r"(?:intermediate\.dense|mlp\.weights_in|mlp\.up_proj)\.", "mlp.fc1."),
        (r"(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", "mlp.fc2."),
        (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
    )
]
"""The names of `transformers`, in the order in which they are replaced."""


def of_transformers(state: State) -> State:
    """`transformers`' ViT, ViT-MAE, DINOv2 and DINOv3 by their authors' names and layout; any other as it is."""
    begin = next((name.removesuffix(CLASS) for name in state if name.endswith(CLASS)), None)
    if begin is None:
        return state
    found: State = {}
    parts: dict[tuple[str, str], State] = {}
    for name, value in state.items():
        mine = name.removeprefix(begin)
        if not name.startswith(begin):
            found[name] = value
        elif match := QKV.fullmatch(mine):
            parts.setdefault((match["block"], match["kind"]), {})[match["which"][0]] = value
        else:
            for pattern, replacement in RENAMED:
                mine = pattern.sub(replacement, mine)
            found[mine] = value
    for (block, kind), each in parts.items():
        if each.keys() == {"q", "k", "v"}:
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([each[which] for which in "qkv"])
        else:  # the keys of DINOv3 have no bias
            found |= {f"blocks.{block}.attn.{which}_{kind}": value for which, value in each.items()}
    if "register_tokens" in found and "pos_embed" not in found:  # DINOv3, whose positions are rotations
        found["storage_tokens"] = found.pop("register_tokens")
    return found


CLASS = "embeddings.cls_token"
"""The name by which a file of `transformers` is known."""


def of_open_clip(state: State) -> State:
    """The image tower of a CLIP with open_clip's own ViT, or with timm's, by timm's names; any other as it is."""
    if "visual.class_embedding" not in state:
        return state
    found: State = {}
    for name, value in state.items():
        mine = name
        if name.startswith("visual."):
            for pattern, replacement in CLIP_RENAMED:
                mine = pattern.sub(replacement, mine)
            if mine in ("visual.cls_token", "visual.pos_embed"):
                value = value.view(1, -1, value.shape[-1])
        found[mine] = value
    return found


OPENAI = {"input_resolution", "context_length", "vocab_size"}
"""What OpenAI's own files hold beside the towers, whose activation is QuickGELU."""
CLIP_RENAMED = [
    (re.compile(rf"^visual\.{pattern}"), f"visual.{replacement}")
    for pattern, replacement in (
        (r"conv1\.", "patch_embed.proj."),
        (r"class_embedding$", "cls_token"),
        (r"positional_embedding$", "pos_embed"),
        (r"ln_pre\.", "norm_pre."),
        (r"ln_post\.", "norm."),
        (r"proj$", "head.proj"),
        (r"transformer\.resblocks\.(\d+)\.ln_", r"blocks.\1.norm"),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj", r"blocks.\1.attn.proj"),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc", r"blocks.\1.mlp.fc1"),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj", r"blocks.\1.mlp.fc2"),
    )
]
