"""CLOSE (Gu, Clark, Kembhavi, ICCV 2023): learn on texts, run on images, across the modality gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.backbones import views_of
from manyviews.distributed import LOCAL
from manyviews.evaluation.features import Features, prepared
from manyviews.evaluation.joint import JointProtocol
from manyviews.evaluation.linear import LogisticRegression
from manyviews.evaluation.protocol import Result
from manyviews.monitoring import diagnostics
from manyviews.similarity import unit


class ModalityGapNoise:
    """Noise on unit text embeddings in training, brought to length 1 again: a head learns to bear the gap.

    Args:
        sigma: deviation of every dimension. What matters is sigma sqrt(D), the length of the noise: the expected cosine
            with the clean vector is about 1 / sqrt(1 + sigma^2 D). Paper, D 768: 0.04 to 0.12.
        covariance: (D, D) of paired differences: three times a sample of it is added (the paper's covariance noise).
    """

    def __init__(self, sigma: float = 0.08, covariance: Tensor | None = None) -> None:
        if sigma < 0:
            raise ValueError(f"sigma must be >= 0, got {sigma}")
        self.sigma = sigma
        # A root that also exists where the covariance is singular.
        values, vectors = torch.linalg.eigh(covariance) if covariance is not None else (None, None)
        self.root = None if values is None else vectors * values.clamp(min=0).sqrt()

    def __call__(self, text: Tensor, generator: torch.Generator) -> Tensor:
        """(n, D) to (n, D) of length 1."""
        noisy = unit(text)
        if self.root is not None:
            drawn = torch.randn(text.shape, generator=generator, dtype=noisy.dtype)
            noisy = noisy + 3 * drawn @ self.root.T.to(noisy.dtype)
        noisy = noisy + self.sigma * torch.randn(text.shape, generator=generator, dtype=noisy.dtype)
        return unit(noisy)


class MeanShift:
    """Moves texts by the mean difference of paired images and texts, estimated once; the length is left as it is.

    Args:
        images, texts: (n, D) paired embeddings. scale: of the shift.
    """

    def __init__(self, images: Tensor, texts: Tensor, scale: float = 1.0) -> None:
        self.shift = scale * (unit(images).mean(0) - unit(texts).mean(0))

    def __call__(self, text: Tensor) -> Tensor:
        """(n, D) to (n, D)."""
        return unit(text) + self.shift


@dataclass
class TextToImage(JointProtocol):
    """A classifier trained on captions only, asked about images; and the gap it had to cross.

    Logistic regression on text embeddings of train with their labels, read on image embeddings of val. Beside the score
    stand that of the same classifier on the captions of val, and of one trained on images.

    Attributes:
        adapter: of the training texts: `noise` (CLOSE), `shift` (the mean difference, of train), `both`, or `none`.
        sigma: of the noise. copies: noisy copies of each text. seed: of the noise.
    """

    adapter: Literal["noise", "shift", "both", "none"] = "noise"
    sigma: float = 0.08
    copies: int = 4
    seed: int = 0
    name = "text_to_image"
    labels = learns = True

    @torch.no_grad()
    @override
    def measure(self, module: Any, data: Any) -> Result:
        self.ready(module, data)
        if self.adapter not in ("noise", "shift", "both", "none"):
            raise ValueError(f"adapter must be noise, shift, both or none, got {self.adapter!r}")
        train, val = (self._pairs(module, data, split) for split in ("train", "val"))
        generator = torch.Generator().manual_seed(self.seed)
        texts = train["text"]
        shifted = self.adapter in ("shift", "both")
        moved = MeanShift(train["image"], texts)(texts) if shifted else unit(texts)
        if self.adapter in ("noise", "both"):
            noise = ModalityGapNoise(self.sigma)
            moved = torch.cat([noise(moved, generator) for _ in range(self.copies)])
        learnt = {
            "text_to_image": (moved, val["image"]),
            "text_to_text": (moved, val["text"]),
            "image_to_image": (unit(train["image"]), val["image"]),
        }
        scores = {name: self._learn(x, train, test, val) for name, (x, test) in learnt.items()}
        gap = diagnostics.modality_gap(train["image"], train["text"]).item()
        return Result(scores, {"modality_gap": gap, "train": len(texts), "val": len(val["label"])})

    @staticmethod
    def _learn(x: Tensor, train: dict[str, Tensor], test: Tensor, val: dict[str, Tensor]) -> float:
        parts = [_features(z, about) for z, about in ((x, train), (unit(test), val))]
        return LogisticRegression(seeds=(0,), limit=10**9).evaluate(*parts).scores["logistic"]

    @staticmethod
    def _pairs(module: Any, data: Any, split: str) -> dict[str, Tensor]:
        """Image embeddings (view 0), those of the first caption, and labels, of what has a label."""
        found: dict[str, list[Tensor]] = {name: [] for name in ("image", "text", "label", "index", "group")}
        for batch in prepared(module, data, split, LOCAL):  # every rank all of it: a small head on top
            keep = (batch["weight"] > 0) & (batch["label"] >= 0)
            found["image"].append(module.embed_image(views_of(batch)[0][keep]).pooled.float().cpu())
            found["text"].append(module.embed_text(batch["text"][0][keep]).pooled.float().cpu())
            for name in ("label", "index", "group"):
                found[name].append(batch[name][keep].cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}


def _features(z: Tensor, about: dict[str, Tensor]) -> Features:
    """Noisy copies of a text stay together where a part is held out: they carry its index."""
    copies = len(z) // len(about["label"])
    label, index, group = (about[name].repeat(copies) for name in ("label", "index", "group"))
    return Features(z[None], label, index, group)
