"""Towers that are not trained any more: one from an exported folder, and one that remembers what it has seen."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file
from torch import Tensor, nn

from manyviews import foreign
from manyviews.backbones.encoding import Encoding, width_of
from manyviews.backbones.weights import not_read, reads


class Exported(nn.Module):
    """A backbone as `manyviews export` wrote it, with its weights: to be locked (LiT), or to start from.

    Args:
        folder: with `config.json` and `model.safetensors`.

    Attributes:
        width: of the backbone. prefix_tokens: of the backbone.

    Raises:
        FileNotFoundError: if there is no such folder. ValueError: if the weights are of another backbone.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.backbone = load_exported(Path(folder))
        self.width = width_of(self.backbone)
        self.prefix_tokens = int(getattr(self.backbone, "prefix_tokens", 0))

    def forward(self, images: Tensor) -> Encoding:
        """As the backbone's."""
        return Encoding.of(self.backbone(images))


EXPORTED = {
    "class_path": str,
    "init_args": foreign.Unchecked,
    "architecture": str,
    "model_args": foreign.Unchecked,
    "num_classes": int,
    "num_features": int,
    "pretrained_cfg": foreign.Unchecked,
}
"""The fields of an exported folder's `config.json`; the arguments are checked with their class."""


def load_exported(folder: Path) -> nn.Module:
    """The backbone of an exported folder; see `Exported`."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json; `manyviews export --run RUN --out {folder}` writes it")
    file = folder / "config.json"
    how = foreign.read_json(file, EXPORTED)
    wanted = {"class_path": how.get("class_path"), "init_args": how.get("init_args") or {}}
    foreign.check(wanted, nn.Module, str(file))
    if folder.resolve() in _loading:
        raise ValueError(f"{file}: names itself")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "backbone")  # as a recipe is read: a backbone may lie in another
    _loading.add(folder.resolve())
    wants_weights = reads()
    try:
        with not_read():  # its weights lie beside the file
            made: nn.Module = parser.instantiate(parser.parse_object({"backbone": wanted})).backbone
        inner = made.get_submodule("model") if "architecture" in how else made  # timm's files have timm's names
        if wants_weights:
            inner.load_state_dict(load_file(folder / "model.safetensors"))
    except (foreign.Refused, OSError):
        raise
    except Exception as error:  # the parser, safetensors and torch have their own kinds
        reason = f"its weights are not those of {how['class_path']}"
        raise ValueError(f"{folder}: {reason}, or it cannot be built: {foreign.shortened(error)}") from error
    finally:
        _loading.discard(folder.resolve())
    return made


_loading: set[Path] = set()
"""Folders that are being loaded: one may name another, but not itself."""


class Cached(nn.Module):
    """A locked tower that computes each input once: captions come again every epoch, and images without augmentation.

    An input is known by its content, so what comes out is what the tower would give. The memory is no part of the
    checkpoint, and the tower's alone: each rank has its own.

    Args:
        backbone: the tower; it has to be locked as a whole.
        entries: how many inputs are remembered; beyond that the one that was used longest ago is forgotten.

    Attributes:
        width, prefix_tokens, projection: of the backbone.
    """

    def __init__(self, backbone: nn.Module, entries: int = 100_000) -> None:
        super().__init__()
        if entries < 1:
            raise ValueError(f"entries must be at least 1, got {entries}")
        self.backbone, self.entries = backbone, entries
        self.width = width_of(backbone)
        self.prefix_tokens = int(getattr(backbone, "prefix_tokens", 0))
        if hasattr(backbone, "projection"):
            self.projection = backbone.projection
        self._known: OrderedDict[bytes, tuple[Tensor | None, ...]] = OrderedDict()

    def forward(self, inputs: Tensor) -> Encoding:
        """As the backbone's in eval mode.

        Raises:
            ValueError: if the backbone is not locked.
        """
        if self.training or any(p.requires_grad for p in self.backbone.parameters()):
            raise ValueError("Cached is for towers that stay as they are: name it in model.training.locked")
        names = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in inputs.detach().cpu().numpy()]
        fresh = {name: i for i, name in enumerate(names) if name not in self._known}
        found: dict[bytes, tuple[Tensor | None, ...]] = {name: self._known[name] for name in names if name not in fresh}
        if fresh:
            # In full precision: evaluation, which does without autocast, is given the same.
            with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
                made = Encoding.of(self.backbone(inputs[list(fresh.values())]))
            parts = (made.pooled, made.tokens, made.token_mask)
            for row, name in enumerate(fresh):
                found[name] = tuple(None if part is None else part[row].clone() for part in parts)
        for name in found:
            self._known[name] = found[name]
            self._known.move_to_end(name)
        while len(self._known) > self.entries:
            self._known.popitem(last=False)
        columns = zip(*(found[name] for name in names), strict=True)
        pooled, tokens, mask = (None if rows[0] is None else torch.stack(list[Any](rows)) for rows in columns)
        assert pooled is not None
        return Encoding(pooled, tokens, mask, self.prefix_tokens)
