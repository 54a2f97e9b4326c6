"""A backbone as `model.safetensors` and `config.json`, checked by loading it back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from manyviews.backbones import Encoding, TimmBackbone


def export_backbone(backbone: nn.Module, model_config: dict[str, Any], images: Tensor, out: Path) -> Iterator[str]:
    """Writes the files and yields a line for each thing done.

    A timm backbone is saved under timm's own names and loaded back with `timm.create_model`; a ResNet with the small
    stem, which timm cannot build, and any other module are loaded back through their class.

    Args:
        backbone: in its trained state. model_config: of the run. images: (B, 3, H, W) to compare on. out: folder.

    Raises:
        ValueError: if what was loaded back does not give the same features.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    by_timm = isinstance(backbone, TimmBackbone) and not backbone.small_stem
    saved = backbone.model if isinstance(backbone, TimmBackbone) and by_timm else backbone
    assert isinstance(saved, nn.Module)
    save_file({name: tensor.contiguous().cpu() for name, tensor in saved.state_dict().items()}, weights)
    if isinstance(backbone, TimmBackbone) and by_timm:
        how: dict[str, Any] = {"architecture": backbone.name, "timm_kwargs": {"num_classes": 0, **backbone.options}}
        again: nn.Module = timm.create_model(
            backbone.name, num_classes=0, checkpoint_path=str(weights), **backbone.options
        )
        options = "".join(f", {key}={value!r}" for key, value in backbone.options.items())
        use = f"timm.create_model({backbone.name!r}, num_classes=0{options}, checkpoint_path={str(weights)!r})"
    else:
        how = dict(model_config["init_args"]["backbone"])
        module, _, name = how["class_path"].rpartition(".")
        again = getattr(import_module(module), name)(**(how.get("init_args") or {}))
        again.load_state_dict(load_file(weights))
        use = f"{how['class_path']}(...) of config.json, then load_state_dict(safetensors.torch.load_file(...))"
    weights.chmod(0o644)  # safetensors writes for the owner alone
    (out / "config.json").write_text(json.dumps(how, indent=1) + "\n")
    yield f"{weights}: {sum(t.numel() for t in saved.state_dict().values()):,} numbers"
    difference = _difference(saved.cpu().eval(), again.eval(), images)
    if difference > 1e-5:
        raise ValueError(f"{weights}: loaded back, its features differ by {difference:.2e}; do not use it")
    yield f"loaded back, features differ by {difference:.1e}"
    yield f"use: {use}"


@torch.no_grad()
def _difference(saved: nn.Module, again: nn.Module, images: Tensor) -> float:
    a, b = (Encoding.of(module(images)).pooled for module in (saved, again))
    return (a - b).abs().max().item()
