"""A backbone as `model.safetensors` and `config.json`, checked by loading it back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manyviews import foreign
from manyviews.backbones import Cached, Encoding, Exported, OpenClipImage, OpenClipText, TimmBackbone
from manyviews.backbones.frozen import EXPORTED
from manyviews.backbones.openclip import model_config
from manyviews.heads import LogitScale
from manyviews.methods import ImageText
from manyviews.runs.files import whole, write_text


def export_backbone(
    backbone: nn.Module, model_config: dict[str, Any], images: Tensor, out: Path, seen: dict[str, Any] | None = None
) -> Iterator[str]:
    """Writes the files and yields a line for each thing done.

    A timm backbone is saved under timm's own names, so that `timm.create_model` reads it too, with what it was shown;
    not a ResNet with the small stem, nor with norms of another eps, which timm cannot build.

    Args:
        backbone: in its trained state. model_config: of the run. images: (B, 3, H, W) to compare on. out: folder.
        seen: what evaluation does to a picture, in timm's words (`ShardDataModule.preprocessing`).

    Raises:
        ValueError: if what was loaded back does not give the same features.
    """
    how: Any = copy.deepcopy(model_config["init_args"]["backbone"])
    how = how if isinstance(how, dict) else {"class_path": how}
    how = {**how, "init_args": how.get("init_args") or {}}
    while isinstance(backbone, Cached | Exported):  # what they hold is exported, not where it came from
        is_cached = isinstance(backbone, Cached)
        how = how["init_args"]["backbone"] if is_cached else _origin(Path(how["init_args"]["folder"]))
        backbone = backbone.backbone
    how["init_args"].pop("checkpoint", None)  # its weights are these now
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    by_timm = isinstance(backbone, TimmBackbone) and not backbone.small_stem and backbone.norm_eps is None
    saved = backbone.model if isinstance(backbone, TimmBackbone) and by_timm else backbone
    assert isinstance(saved, nn.Module)
    (out / "config.json").unlink(missing_ok=True)  # comes last: a folder without it is no export
    with whole(weights) as part:
        save_file({name: tensor.contiguous().cpu() for name, tensor in saved.state_dict().items()}, part)
    use = f"manyviews.backbones.Exported({str(out)!r})"
    if isinstance(backbone, TimmBackbone) and by_timm:
        how |= {
            "architecture": backbone.name.partition(".")[0],
            "num_classes": 0,
            "num_features": backbone.model.num_features,
            "model_args": backbone.options,
            "pretrained_cfg": {"num_classes": 0, **(seen or {})},
        }
        use += f", or timm.create_model({f'local-dir:{out}'!r}, pretrained=True, num_classes=0)"
    weights.chmod(0o644)  # safetensors writes for the owner alone
    write_text(out / "config.json", json.dumps(how, indent=1) + "\n")
    yield f"{weights}: {sum(t.numel() for t in saved.state_dict().values()):,} numbers"
    difference = _difference(backbone.cpu().eval(), Exported(str(out)).eval(), images)
    if difference > 1e-5:
        raise ValueError(f"{weights}: loaded back, its features differ by {difference:.2e}; do not use it")
    yield f"loaded back, features differ by {difference:.1e}"
    yield f"use: {use}"


def _origin(folder: Path) -> dict[str, Any]:
    """Class and arguments in an exported folder."""
    config = foreign.read_json(folder / "config.json", EXPORTED)
    return {"class_path": config["class_path"], "init_args": config.get("init_args") or {}}


@torch.no_grad()
def _difference(saved: nn.Module, again: nn.Module, images: Tensor) -> float:
    a, b = (Encoding.of(module(images)).pooled for module in (saved, again))
    return (a - b).abs().max().item()


def export_open_clip(method: ImageText, data: Any, images: Tensor, out: Path) -> Iterator[str]:
    """Writes an image-text method as a folder that open_clip loads as `local-dir:OUT`, and loads it back to compare.

    Args:
        method: with open_clip's towers and linear projections. data: its data module, for size, mean and deviation.
        images: (B, 3, H, W) to compare on. out: folder.

    Raises:
        ValueError: if the method has parts that open_clip cannot hold, or gives other features loaded back.
    """
    import open_clip

    image, text = method.backbone, method.text_backbone
    heads = method.projector, method.text_projector
    if not (isinstance(image, OpenClipImage) and isinstance(text, OpenClipText)):
        raise ValueError(
            "open_clip can hold open_clip's towers only; `manyviews export` without --open-clip saves others"
        )
    if not all(isinstance(head, nn.Linear) and head.bias is None for head in heads) or image.projection is None:
        raise ValueError("open_clip can hold linear projections without bias only")
    assert isinstance(heads[0], nn.Linear) and isinstance(heads[1], nn.Linear)
    config = copy.deepcopy(model_config(image.name))
    config |= {"embed_dim": method.dim, "custom_text": True}
    config["vision_cfg"] |= image.options
    config["text_cfg"] |= text.options | {"proj_bias": False, "proj_type": "linear"}
    state = {f"visual.{name}": value for name, value in image.model.state_dict().items()}
    state |= {f"text.{name}": value for name, value in text.model.state_dict().items()}
    state |= {"visual.proj": heads[0].weight.T, "text.text_projection": heads[1].weight.T}
    scales = [module for module in method.objective.modules() if isinstance(module, LogitScale)]
    state["logit_scale"] = scales[0].log_scale[0] if scales else torch.tensor(0.0)
    if scales and scales[0].bias is not None:
        state["logit_bias"] = scales[0].bias[0]
        config["init_logit_bias"] = scales[0].bias.item()
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "open_clip_model.safetensors"
    (out / "open_clip_config.json").unlink(missing_ok=True)
    with whole(weights) as part:
        save_file({name: value.detach().contiguous().cpu() for name, value in state.items()}, part)
    weights.chmod(0o644)
    view = getattr(data.plain, "transform", None)
    preprocess = {
        "mean": list(data.mean),
        "std": list(data.std),
        "interpolation": getattr(view, "interpolation", "bilinear"),
        "resize_mode": getattr(view, "mode", "shortest"),
    }
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    write_text(out / "open_clip_config.json", json.dumps(content, indent=1) + "\n")
    yield f"{weights}: {sum(value.numel() for value in state.values()):,} numbers"
    again = open_clip.create_model(f"local-dir:{out}").eval()
    texts = data.tokens(["a", "a photo of a cat", "two small squares"])
    method = method.cpu().eval()
    with torch.no_grad():
        pairs = [
            (method.embed_image(images.cpu()).pooled, again.encode_image(images.cpu(), normalize=True)),
            (method.embed_text(texts).pooled, again.encode_text(texts, normalize=True)),
        ]
    difference = max((a - b).abs().max().item() for a, b in pairs)
    if difference > 1e-5:
        raise ValueError(f"{weights}: loaded back by open_clip, its features differ by {difference:.2e}; do not use it")
    yield f"loaded back by open_clip, features differ by {difference:.1e}"
    yield f"use: open_clip.create_model_and_transforms('local-dir:{out}')"
