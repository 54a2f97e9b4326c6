"""The towers of open_clip's models, by the model's name: random, or with weights from disk."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from manyviews import foreign
from manyviews.backbones.encoding import Encoding
from manyviews.backbones.weights import reads

logger = logging.getLogger(__name__)

FOLDER = "local-dir:"


class OpenClipImage(nn.Module):
    """The image tower of an open_clip model, without its projection.

    Args:
        name: of the model, such as `ViT-B-32`; or `local-dir:FOLDER`, a model as open_clip saves it.
        checkpoint: a local file that open_clip can read; nothing is ever downloaded.
        options: entries of the model's `vision_cfg` in place of its own, such as {width: 64, layers: 2, patch_size: 8,
            image_size: 32, head_width: 32}.

    Attributes:
        width: D of the pooled features. projection: (D, dim) of the checkpoint, or as open_clip starts it; None if
            the tower cannot be parted from it (ResNets), and the features are those after it.
    """

    def __init__(self, name: str, checkpoint: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.name, self.options = name, dict(options or {})
        self.model, dim = build(name, "visual", checkpoint, self.options)
        proj = getattr(self.model, "proj", None)
        self.projection = proj.detach().clone() if isinstance(proj, nn.Parameter) else None
        if self.projection is not None:
            self.model.proj, self.model.output_tokens = None, True
        self.width: int = dim if self.projection is None else len(self.projection)

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) normalised floats to an Encoding; tokens are the patches, without the class token."""
        found = self.model(images)
        return Encoding(*found) if isinstance(found, tuple) else Encoding(found)

    def no_weight_decay(self) -> list[str]:
        """Positions and class token, as open_clip trains."""
        return [f"model.{name}" for name in ("positional_embedding", "class_embedding") if hasattr(self.model, name)]


class OpenClipText(nn.Module):
    """The text tower of an open_clip model, without its projection.

    Args:
        name, checkpoint: as in `OpenClipImage`.
        options: entries of the model's `text_cfg` in place of its own, such as {width: 64, heads: 2, layers: 2,
            context_length: 32}.

    Attributes:
        width: D of the pooled features. projection: (D, dim), as in `OpenClipImage`.
        context: tokens of a text.
    """

    def __init__(self, name: str, checkpoint: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.name, self.options = name, dict(options or {})
        self.model, _ = build(name, "text", checkpoint, self.options)
        proj = getattr(self.model, "text_projection", None)
        if isinstance(proj, nn.Linear):
            if proj.bias is not None:
                raise ValueError(f"{name}: its text projection has a bias, which this tower cannot be parted from")
            proj = nn.Parameter(proj.weight.T)
        self.projection = proj.detach().clone() if isinstance(proj, nn.Parameter) else None
        if not hasattr(self.model, "token_embedding"):
            raise ValueError(f"{name}: only open_clip's own text transformers can be towers")
        self.model.text_projection, self.model.output_tokens = None, True
        self.context: int = self.model.context_length
        self.width = int(self.model.ln_final.weight.shape[0])

    def forward(self, ids: Tensor) -> Encoding:
        """(B, L) int64 to an Encoding; tokens up to the end-of-text token are valid."""
        if ids.shape[1] != self.context:
            raise ValueError(
                f"texts of {ids.shape[1]} tokens, but the text tower has {self.context}: set data.text.context to it"
            )
        pooled, tokens = self.model(ids)
        return Encoding(pooled, tokens, text_mask(ids))

    def no_weight_decay(self) -> list[str]:
        """Positions, as open_clip trains."""
        return ["model.positional_embedding"]


def text_mask(ids: Tensor) -> Tensor:
    """(B, L) bool: True up to the last token that is no padding (0), which also is a word's number."""
    last = (ids != 0).long().cumsum(1).argmax(1)
    return torch.arange(ids.shape[1], device=ids.device) <= last[:, None]


def build(name: str, part: Literal["visual", "text"], checkpoint: str | None, options: Mapping[str, Any]) -> Any:
    """One tower of an open_clip model, and the width of its joint space.

    Raises:
        ValueError: for an unknown name, or weights of another model. FileNotFoundError: without the checkpoint.
    """
    import open_clip  # takes seconds

    config = copy.deepcopy(model_config(name))
    if checkpoint is None and name.startswith(FOLDER):
        files = [Path(name.removeprefix(FOLDER)) / f"open_clip_{f}" for f in ("model.safetensors", "pytorch_model.bin")]
        checkpoint = str(next((file for file in files if file.is_file()), files[0]))
    mine, other = ("vision_cfg", "text_cfg") if part == "visual" else ("text_cfg", "vision_cfg")
    config[mine].update(options)
    _check_tower(config[mine], mine, f"{name} with {dict(options)!r:.200}" if options else name)
    config[other] = SMALLEST[other]
    config["vision_cfg"]["timm_model_pretrained"] = False
    model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    tower: nn.Module = getattr(model, part)
    if checkpoint is not None and reads():
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"{checkpoint}: no such weights for {name}")
        from open_clip.factory import load_state_dict
        from open_clip.model import convert_to_custom_text_state_dict

        try:
            state = convert_to_custom_text_state_dict(load_state_dict(checkpoint, weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, StopIteration) as error:
            reason = " ".join(str(error).split())[:500]
            raise ValueError(
                f"{checkpoint}: no file of weights and nothing else; loading it could run code ({reason})"
            ) from error
        own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        try:
            tower.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{checkpoint}: its {part} tower is not that of {name} with {dict(options)}") from error
    return tower, config["embed_dim"]


SMALLEST: dict[str, dict[str, Any]] = {
    "text_cfg": {"width": 8, "heads": 1, "layers": 1, "context_length": 2, "vocab_size": 2},
    "vision_cfg": {"width": 8, "head_width": 8, "layers": 1, "patch_size": 8, "image_size": 8},
}
"""In the place of the tower that is not asked for."""


def model_config(name: str) -> dict[str, Any]:
    """What open_clip knows of a model: its towers, its joint space.

    Raises:
        ValueError: for an unknown name. FileNotFoundError: for a folder without a configuration.
    """
    import open_clip

    if name.startswith(FOLDER):
        return _checked(Path(name.removeprefix(FOLDER)) / "open_clip_config.json")
    found: dict[str, Any] | None = None if ":" in name else open_clip.get_model_config(name)
    if found is None:
        near = [model for model in open_clip.list_models() if model.lower().startswith(name.lower()[:5])]
        remote = f" (nothing is looked up on a network; {FOLDER}PATH is a folder on disk)" if ":" in name else ""
        raise ValueError(
            f"open_clip has no model {name!r}{remote}" + (f"; near it: {', '.join(near[:6])}" if near else "")
        )
    return found


TOP = {
    "embed_dim": int,
    "quick_gelu": bool,
    "init_logit_scale": float,
    "init_logit_bias": float | None,
    "custom_text": bool,
    "cast_dtype": str | None,
    "output_dict": bool,
}
"""What a model's configuration may hold beside its towers."""
PREPROCESS = dict[str, list[float] | list[int] | int | float | str | None]
"""Size, mean, deviation, interpolation, mode of resizing and fill colour."""


def preprocessing(name: str) -> dict[str, Any]:
    """What a model wants of its pictures: size, mean, std, interpolation, resize_mode, fill_color.

    Of a `local-dir:` model what its folder says; of a model known by name what its published weights have in common.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg

    found = {**asdict(PreprocessCfg()), "size": model_config(name)["vision_cfg"].get("image_size", 224)}
    if name.startswith(FOLDER):
        file = Path(name.removeprefix(FOLDER)) / "open_clip_config.json"
        said: dict[str, Any] = json.loads(file.read_bytes()).get("preprocess_cfg") or {}
        for key, kind in PREPROCESSED.items():
            foreign.check(said.get(key), kind | None, f"{file}: preprocess_cfg.{key}")
    else:
        tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
        said = {}
        for key in PREPROCESSED:
            values = [tag[key] for tag in tags if tag.get(key) is not None]
            if key != "size" and values and all(value == values[0] for value in values):
                said[key] = values[0]
            elif key != "size" and values:
                logger.warning("%s: its published weights differ in %s; taken is %s", name, key, found[key])
    found |= {key: value for key, value in said.items() if key in PREPROCESSED and value is not None}
    size = found["size"]
    if isinstance(size, list | tuple):
        if len(set(size)) > 1:
            raise ValueError(f"{name}: its pictures are {size[0]} x {size[1]}, and views here are square")
        found["size"] = size[0]
    return found


PREPROCESSED: dict[str, Any] = {
    "size": int | list[int],
    "mean": tuple[float, float, float],
    "std": tuple[float, float, float],
    "interpolation": str,
    "resize_mode": str,
    "fill_color": int,
}
"""What is used of a model's preprocessing."""


def _checked(file: Path) -> dict[str, Any]:
    """The model of an open_clip folder, which may be anybody's, checked against open_clip's own classes.

    Raises:
        FileNotFoundError: without the file. ValueError: for what open_clip does not know, or would look up elsewhere.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; {FOLDER}PATH is a model as open_clip saves it")
    content = foreign.read_json(file, {"model_cfg": foreign.Unchecked, "preprocess_cfg": PREPROCESS})
    found = content.get("model_cfg")
    if not isinstance(found, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= found.keys():
        raise ValueError(f"{file}: no model_cfg with embed_dim, vision_cfg and text_cfg")
    for key, value in found.items():
        if key in ("vision_cfg", "text_cfg"):
            foreign.check(value, dict[str, foreign.Unchecked], f"{file}: {key}")
        elif key in TOP:
            foreign.check(value, TOP[key], f"{file}: {key}")
        else:
            raise ValueError(
                f"{file}: unknown key model_cfg.{key}; there are {', '.join(TOP)}, vision_cfg and text_cfg"
            )
    for part in ("vision_cfg", "text_cfg"):
        _check_tower(found[part], part, str(file))
    return found


def _check_tower(config: Mapping[str, Any], part: str, where: str) -> None:
    """Raises ValueError for a tower that open_clip does not know, or would look up elsewhere."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    given = {name: value for name, value in config.items() if value is not None}  # open_clip's own hold such
    foreign.check_arguments(given, CLIPVisionCfg if part == "vision_cfg" else CLIPTextCfg, f"{where}: {part}")
    timm_name = config.get("timm_model_name")
    if timm_name is not None and (":" in timm_name or not timm.is_model(timm_name)):
        raise ValueError(f"{where}: timm has no model {timm_name!r}; names of a hub or a path are not looked up")
    if config.get("hf_model_name") is not None:
        raise ValueError(f"{where}: a text tower of Hugging Face; only open_clip's own text transformers can be towers")
