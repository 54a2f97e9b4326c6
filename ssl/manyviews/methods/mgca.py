"""MGCA (Wang et al., NeurIPS 2022): instances, tokens and prototypes aligned."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import Encoding, width_of
from manyviews.methods.tokens import TokenImageText
from manyviews.optim import Schedule, Training
from manyviews.similarity import unit


class MGCA(TokenImageText):
    """MGCA (Wang et al., NeurIPS 2022): instances, tokens and prototypes.

    All words of a report count alike, and all patches. The authors weigh words, and patches of a ViT, by the attention
    that the class token pays them in the last layer, which the towers here do not give; patches of a ResNet they weigh
    evenly too. Their words are whole, the sums of their pieces; here every piece is a word.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        objective: see `manyviews.objectives.MGCA`; its dim is the joint space's. Default 128 and 500 prototypes.
        dim: of the joint space.
        hidden: width of the heads' hidden layer; paper 2048.
        training: paper: AdamW 2e-5, weight decay 0.05, from pretrained towers; warm-up for 40 % of all steps, cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: objectives.MGCA | None = None,
        dim: int = 128,
        hidden: int = 2048,
        training: Training = Training(
            partial(torch.optim.AdamW, lr=2e-5, weight_decay=0.05), Schedule(warmup_steps=2000, scaling="none")
        ),
    ) -> None:
        super().__init__(backbone, text_backbone, objective or objectives.MGCA(dim), dim, None, training)
        widths = width_of(backbone), width_of(text_backbone)
        self.projector, self.text_projector = (self._head(width, hidden, dim) for width in widths)
        self.token_heads = nn.ModuleList(self._head(width, hidden, dim) for width in widths)
        self.token_projector = self.text_token_projector = nn.Identity()  # type: ignore[assignment]

    @staticmethod
    def _head(width: int, hidden: int, dim: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim),
            nn.BatchNorm1d(dim, affine=False),
        )  # fmt: skip

    @override
    def patches(self, image: Encoding) -> tuple[Tensor, Tensor]:
        tokens, mask = super().patches(image)
        return self._local(0, tokens, mask)

    @override
    def words(self, text: Encoding) -> tuple[Tensor, Tensor]:
        tokens, mask = super().words(text)
        return self._local(1, tokens, mask)

    def _local(self, modality: int, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The head's BatchNorm counts valid tokens only."""
        valid = self.token_heads[modality](tokens[mask])
        return valid.new_zeros(*mask.shape, valid.shape[1]).masked_scatter(mask[..., None], valid), mask

    @override
    def whole(self, image: Encoding, text: Encoding, patches: Any, words: Any) -> list[Tensor]:
        return [self.projector(image.pooled), self.text_projector(text.pooled)]

    @override
    def joint_image(self, features: Encoding) -> Encoding:
        return Encoding(unit(self.projector(features.pooled)))

    @override
    def joint_text(self, features: Encoding) -> Encoding:
        return Encoding(unit(self.text_projector(features.pooled)))
