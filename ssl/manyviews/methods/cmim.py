"""cMIM (Livne, 2025): a probabilistic auto-encoder whose codes can be told apart; one view, no augmentation needed."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoding, width_of
from manyviews.methods.method import Batch, Method, Step
from manyviews.objectives import CMIM as Objective
from manyviews.objectives import Objective as AnyObjective
from manyviews.optim import Schedule, Training


class Decoder(nn.Module):
    """A code to an image: from 4 x 4 places, each step doubles the side by an upsampling 3x3 convolution.

    Args:
        latent: D of the code. size: side of the image, 4 times a power of two. width: channels of the last layer.
    """

    def __init__(self, latent: int, size: int, width: int = 32) -> None:
        super().__init__()
        steps = int(math.log2(size / 4)) if size >= 4 else -1
        if size != 4 * 2 ** max(steps, 0):
            raise ValueError(f"image_size must be 4, 8, 16, 32, 64, ..., got {size}")
        channels = [min(256, width * 2**k) for k in range(steps, -1, -1)]
        self.first, self.channels = nn.Linear(latent, channels[0] * 16), channels[0]
        layers: list[nn.Module] = []
        for before, after in zip(channels, [*channels[1:], width], strict=True):
            grow = nn.Upsample(scale_factor=2) if len(layers) // 4 < steps else nn.Identity()
            layers += [grow, nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body, self.last, self.width = nn.Sequential(*layers), nn.Conv2d(width, 3, 1), width

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) to the last hidden map (n, width, H, W) and the image (n, 3, H, W)."""
        hidden = self.body(self.first(z).view(len(z), self.channels, 4, 4))
        return hidden, self.last(hidden)


class CMIM(Method):
    """Encoder, sampled code, decoder; the paper has no recipe for images, and ours is a small convolutional one.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        image_size: side of the images, 4 times a power of two.
        latent: D of the code. temperature, contrast, reconstruction: see the objective; contrast 0 is A-MIM.
        noise: deviation of the normal pixels, in units of the normalised images.
        recon_reduction: `sum`: the likelihood of an image, a sum over its pixels; `mean`: over their number.
        embedding: what evaluation sees: `informative`, the decoder's last hidden layer for the mean code, averaged over
            places; or `encoder`, the backbone's features.
        regulariser: an objective over the backbone's features that is added, such as Repulsor; None: nothing.
        training: ours: Adam 1e-3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: int,
        latent: int = 128,
        temperature: float = 0.1,
        contrast: float = 1.0,
        reconstruction: float = 1.0,
        noise: float = 0.5,
        recon_reduction: Literal["sum", "mean"] = "sum",
        embedding: Literal["informative", "encoder"] = "informative",
        regulariser: AnyObjective | None = None,
        training: Training = Training(partial(torch.optim.Adam, lr=1e-3), Schedule(scaling="none")),
    ) -> None:
        head = nn.Linear(width_of(backbone), 2 * latent)
        super().__init__(backbone, head, Objective(temperature, contrast, reconstruction), training)
        if recon_reduction not in ("sum", "mean") or embedding not in ("informative", "encoder"):
            raise ValueError(f"recon_reduction is sum or mean, embedding informative or encoder; got "
                             f"{recon_reduction!r}, {embedding!r}")  # fmt: skip
        self.decoder, self.regulariser = Decoder(latent, image_size), regulariser
        self.noise, self.recon_reduction, self.embedding = noise, recon_reduction, embedding

    def embed(self, batch: Batch) -> list[Encoding]:
        """Informative embeddings, or the backbone's features."""
        encodings = super().embed(batch)
        if self.embedding == "encoder":
            return encodings
        codes = [self.projector(encoding.pooled).chunk(2, 1)[0] for encoding in encodings]
        return [Encoding(self.decoder(code)[0].mean((2, 3))) for code in codes]

    def step(self, batch: Batch) -> Step:
        """Every view is reconstructed on its own."""
        h = self.encode(self.backbone, batch["image"])
        losses, codes = [], []
        for projection, images in zip(self.project(h), batch["image"], strict=True):
            mean, log_scale = projection.float().chunk(2, 1)
            log_scale = log_scale.clamp(min=-6)
            z = mean + log_scale.exp() * torch.randn_like(mean)
            context = {"mean": mean, "log_scale": log_scale, "log_likelihood": self.log_likelihood(images, z)}
            losses.append(self.objective([z], **context, **self.context(batch)))
            codes.append(z)
        loss, readings = torch.stack(losses).mean(), dict[str, Tensor]()
        if self.regulariser is not None:
            extra = self.regulariser([view.pooled for view in h], **self.context(batch, self.regulariser))
            readings["regulariser"] = extra.detach()
            loss = loss + extra
        return Step(loss, h, codes if len(codes) > 1 else codes * 2, readings)

    def log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:
        """(n,): log p(x | z)."""
        _, restored = self.decoder(z)
        squared = ((restored.float() - images.float()) / self.noise).square().flatten(1)
        each: Tensor = -0.5 * squared - math.log(self.noise) - 0.5 * math.log(2 * math.pi)
        return each.sum(1) if self.recon_reduction == "sum" else each.mean(1)
