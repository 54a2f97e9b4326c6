"""Image backbones: any timm model by name, and a small convolutional network for CPUs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from manyviews.backbones.encoding import Encoding


class TimmBackbone(nn.Module):
    """Any timm model, headless.

    Args:
        name: timm's model name, such as `resnet50` or `vit_small_patch16_224`.
        small_stem: for ResNets on small images (CIFAR): a 3x3 stride-1 first convolution and no max-pooling.
        image_size, patch_size: for ViTs; None keeps the model's own.
        checkpoint: a local weights file that timm can read, without code in it; nothing is ever downloaded.
        drop_path: stochastic depth rate.
        frozen_patches: for ViTs, as in MoCo v3: the patch projection stays random and the positions are 2-D sines,
            which keeps gradient spikes away.
        in_chans: bands of the pictures.

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
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"img_size": image_size, "patch_size": patch_size}
        options |= {"in_chans": in_chans} if in_chans != 3 else {}
        options = {key: value for key, value in options.items() if value is not None}
        if drop_path:
            options["drop_path_rate"] = drop_path
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            raise ValueError(f"timm has no model {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
        self.name, self.small_stem, self.options = name, small_stem, options
        self.model = timm.create_model(name, num_classes=0, **options)
        if checkpoint:
            _load(self.model, checkpoint)
        if small_stem:
            _make_small_stem(self.model, name)
        if frozen_patches:
            _freeze_patches(self.model, name)
        # Some models (MobileNetV3) have a further layer between the feature map and the pooled features.
        self.width: int = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"  # Swin
        self.prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, H, W) normalised floats to an Encoding with one token a patch or feature-map place."""
        # Convolutions follow the layout of their input, and tensor cores want channels last: a step of a ResNet-50 in
        # bf16 takes half the time on an H200.
        features = self.model.forward_features(images.contiguous(memory_format=torch.channels_last))
        tokens = features
        if features.ndim == 4:
            tokens = features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)
        pooled = self.model.forward_head(features, pre_logits=True)
        return Encoding(pooled, tokens, prefix_tokens=self.prefix_tokens)


def _load(model: nn.Module, checkpoint: str) -> None:
    """Weights from disk: tensors and plain types only, whatever timm's default is.

    Raises:
        FileNotFoundError: without the file. ValueError: for a pickle of anything else.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"{checkpoint}: no such weights")
    try:
        timm.models.load_checkpoint(model, checkpoint, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        is_pickle = isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError)
        what = "holds more than weights, and loading it could run code" if is_pickle else "does not fit"
        raise ValueError(f"{checkpoint}: {what} ({' '.join(str(error).split())[:500]})") from error


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

    Attributes:
        width: D of the pooled features.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 256),
        norm: Literal["batch", "group"] = "batch",
        in_chans: int = 3,
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
