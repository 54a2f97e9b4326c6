"""Image backbones: any timm model by name, and a small convolutional network for CPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models import group_parameters
from torch import Tensor, nn

from manyviews.backbones.encoding import Encoding
from manyviews.backbones.published import State
from manyviews.backbones.weights import load_weights
from manyviews.names import meant


class TimmBackbone(nn.Module):
    """Any timm model, headless.

    Args:
        name: timm's model name, such as `resnet50` or `vit_small_patch16_224`.
        small_stem: for ResNets on small images (CIFAR): a 3x3 stride-1 first convolution and no max-pooling.
        image_size, patch_size: for ViTs; None keeps the model's own. Of a ViT whose positions are a grid or rotations,
            `image_size` is only that grid: it takes pictures of any size that the patch divides.
        checkpoint: published weights, or those of a run: see `manyviews.backbones.weights`. At another image or patch
            size, and for other bands, timm resamples them.
        drop_path: stochastic depth rate.
        frozen_patches: for ViTs, as in MoCo v3: the patch projection stays random and the positions are 2-D sines,
            which keeps gradient spikes away.
        in_chans: bands of the pictures.
        options: further arguments of timm's model, such as {class_token: false, global_pool: avg, fc_norm: false}.
        norm_eps: of the LayerNorms; None keeps the model's own. transformers' ViT and ViT-MAE have 1e-12, timm's 1e-6.

    Attributes:
        width: D of the pooled features.
    """

    def __init__(
        self,
        name: str,
        small_stem: bool = False,
        image_size: int | None = None,
        patch_size: int | None = None,
        checkpoint: str | None = None,
        drop_path: float = 0.0,
        frozen_patches: bool = False,
        in_chans: int = 3,
        options: Mapping[str, Any] | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"img_size": image_size, "patch_size": patch_size}
        given |= {"in_chans": in_chans} if in_chans != 3 else {}
        given = {key: value for key, value in given.items() if value is not None} | dict(options or {})
        if drop_path:
            given["drop_path_rate"] = drop_path
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}" + meant(name, timm.list_models()))
        self.name, self.small_stem = name, small_stem
        self.model: Any
        self.model, self.options = _made(name, given)
        if small_stem:
            _make_small_stem(self.model, name)
        self.norm_eps = norm_eps
        for norm in self._norms() if norm_eps is not None else ():
            norm.eps = norm_eps
        load_weights(self, checkpoint)
        if frozen_patches:
            _freeze_patches(self.model, name)
        # Some models (MobileNetV3) have a further layer between the feature map and the pooled features.
        self.width: int = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"  # Swin
        self.prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))

    def _norms(self) -> list[Any]:
        return [part for part in self.model.modules() if isinstance(part, nn.LayerNorm)]

    def _check(self, about: Mapping[str, Any]) -> None:
        """Holds what a file says of its network, and its tensors do not show, against this one."""
        if about.get("quick_gelu") and "quickgelu" not in self.name:
            raise ValueError(f"OpenAI's CLIP has another activation than {self.name}: name its quickgelu model")
        if about.get("hidden_act") not in (None, "gelu", "silu"):
            raise ValueError(f"its activation is {about['hidden_act']!r}, which {self.name} has not")
        blocks = getattr(self.model, "blocks", None)
        heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None
        if None not in (heads, about.get("num_attention_heads")) and heads != about["num_attention_heads"]:
            raise ValueError(f"it has {about['num_attention_heads']} heads of attention, {self.name} has {heads}")
        eps, norms = about.get("layer_norm_eps"), self._norms()
        if eps is not None and norms and not math.isclose(norms[0].eps, eps):
            raise ValueError(f"its LayerNorms have eps {eps:g}, those here {norms[0].eps:g}: give norm_eps {eps:g}")

    def layers(self) -> dict[str, int]:
        """The layer of each parameter in the stem, which is 0, and in the blocks, by its name."""
        found = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        # Timm puts the norm after the blocks into the last of them; the papers do not.
        return {f"model.{name}": layer for name, layer in found.items() if not name.startswith(("norm.", "fc_norm."))}

    @property
    def published_names(self) -> set[str]:
        """By which a file of this model is known: those of timm."""
        return set(self.model.state_dict())

    def converted(self, state: State, about: Mapping[str, Any]) -> tuple[State, set[str]]:
        """Own state for a published one: timm's conversions and resampling, strictly; see `load_weights`."""
        self._check(about)
        if "register_tokens" in state and "mask_token" not in state:
            state = {**state, "mask_token": state["cls_token"][:, 0]}  # by which timm knows DINOv2
        kept, unused = {}, set[str]()
        stem = state.get("conv1.weight") if self.small_stem else None
        if stem is not None and stem.shape != self.model.conv1.weight.shape:
            kept = {"conv1.weight": self.model.conv1.weight}
            unused = {"conv1.weight"}
        elif stem is not None:
            kept = {"conv1.weight": stem}
            state = {**state, "conv1.weight": self.model.conv1.weight.new_zeros(stem.shape[0], stem.shape[1], 7, 7)}
        overlay = {"state_dict": dict(state), "num_classes": 0}
        made = timm.create_model(
            self.name, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, **self.options
        )
        return {f"model.{name}": value for name, value in {**made.state_dict(), **kept}.items()}, unused

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) normalised floats to an Encoding with one token a patch or feature-map place."""
        # Convolutions follow the layout of their input, and tensor cores want channels last: a step of a ResNet-50 in
        # bf16 takes half the time on an H200.
        features = self.model.forward_features(images.contiguous(memory_format=torch.channels_last))
        if not isinstance(features, Tensor):
            raise ValueError(f"timm's {self.name} gives several feature maps at once: it can be no backbone here")
        tokens = features
        if features.ndim == 4:
            tokens = features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)
        pooled = self.model.forward_head(features, pre_logits=True)
        return Encoding(pooled, tokens, prefix_tokens=self.prefix_tokens)


def _made(name: str, given: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The model, of dynamic size where it can be, and the arguments it was made with.

    Raises:
        ValueError: for an argument that it does not take.
    """
    try:
        dynamic = {"dynamic_img_size": True, **given}
        return timm.create_model(name, num_classes=0, **dynamic), dynamic
    except TypeError:
        pass
    try:
        return timm.create_model(name, num_classes=0, **given), given
    except TypeError as error:
        raise ValueError(f"timm's {name} does not take all of {', '.join(given)} ({error})") from error


def _make_small_stem(model: nn.Module, name: str) -> None:
    conv = getattr(model, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise ValueError(f"small_stem is for timm ResNets with a 7x7 stem, not for {name}; use patch_size for ViTs")
    model.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _freeze_patches(model: nn.Module, name: str) -> None:
    patches, positions = getattr(model, "patch_embed", None), getattr(model, "pos_embed", None)
    if patches is None or positions is None:
        raise ValueError(f"frozen_patches is for timm ViTs with a position embedding, not for {name}")
    patches.requires_grad_(False)
    height, width = patches.grid_size
    sines = build_sincos2d_pos_embed([height, width], positions.shape[-1], interleave_sin_cos=False)
    with torch.no_grad():
        positions.zero_()[0, -height * width :] = sines  # a class token, in front, has none
    positions.requires_grad_(False)


class ConvNet(nn.Module):
    """A plain stack of 3x3 convolutions with a norm and ReLU, for small images on a CPU.

    The first keeps the resolution, each further one that widens halves it; features are averaged over places.
    With the default widths an image of 32 px costs about 24 million multiply-adds.

    Args:
        widths: channels of each convolution.
        norm: `batch`, or `group` (8 channels a group) where an image must not depend on its batch.
        in_chans: bands of the pictures.
        checkpoint: as in `TimmBackbone`.

    Attributes:
        width: D of the pooled features.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 256),
        norm: Literal["batch", "group"] = "batch",
        in_chans: int = 3,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group"):
            raise ValueError(f"norm must be 'batch' or 'group', got {norm!r}")
        layers: list[nn.Module] = []
        before = in_chans
        for number, after in enumerate(widths):
            stride = 2 if number and after > before else 1
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(max(1, after // 8), after), nn.ReLU()]
            before = after
        # Channels last is 1.2 to 1.5 times as fast as channels first for these shapes on a CPU.
        self.body = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.width = before
        load_weights(self, checkpoint)

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) normalised floats to an Encoding with one token a place of the last feature map."""
        places = self.body(images.contiguous(memory_format=torch.channels_last))
        tokens = places.flatten(2).transpose(1, 2)
        return Encoding(tokens.mean(1), tokens)


class Pixels(nn.Module):
    """The raw pixels as features: the baseline that every image encoder has to beat; of a clip its mean frame."""

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W), or clips (B, T, 3, H, W), to (B, 3 H W)."""
        if images.ndim == 5:
            images = images[:, :, :3].mean(1)
        return Encoding(torch.flatten(images, 1))
