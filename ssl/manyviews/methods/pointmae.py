"""Masked autoencoders of point clouds: Point-MAE (Pang et al., ECCV 2022) and Point-CMAE (Ren et al., ACCV 2024)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyviews import distributed, objectives
from manyviews.backbones import Encoding, PointTransformer, views_of
from manyviews.backbones.points import Patches, PointDecoder, pooled
from manyviews.methods.method import Batch, Count, Method, Step
from manyviews.objectives.objective import choice
from manyviews.optim import Schedule, Training

RECIPE = Training(
    partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05),
    Schedule(warmup_epochs=10, final=1e-3, scaling="none"),
)
"""Point-MAE's: 10 epochs of warm-up, cosine to a thousandth of the peak."""


class MaskedPoints(Method):
    """What both share: patches, masks, and what is shown.

    Args:
        backbone: the encoder. objective: the loss. mask_ratio, mask, training: as in PointMAE.
    """

    takes_chunks = False
    takes_views: Count = (1, 1)

    def __init__(
        self,
        backbone: PointTransformer,
        objective: objectives.PointMAE,
        mask_ratio: float,
        mask: str,
        training: Training,
    ) -> None:
        super().__init__(backbone, nn.Identity(), objective, training)
        self.mask, self.masked = choice("mask", mask, ("random", "block")), int(mask_ratio * backbone.groups)
        if not 0 < self.masked < backbone.groups - 1:
            raise ValueError(
                f"mask_ratio {mask_ratio} hides {self.masked} of {backbone.groups} patches: some must be hidden, and "
                "two or more left"
            )
        self._seen: tuple[Patches, Tensor, Tensor] | None = None

    def patches(self, batch: Batch) -> tuple[Patches, Tensor]:
        """Patches of the clouds and their tokens, hidden ones included: BatchNorm sees all."""
        patches = self.encoder.group(views_of(batch)[0])
        return patches, self.encoder.tokens(patches.relative)

    def ended(self, views: list[Tensor], shown: list[Tensor], context: dict[str, Any]) -> Step:
        """The loss, and what monitoring looks at."""
        loss = self.objective([view.flatten(1) for view in views], gather=distributed.current(), **context)
        return Step(loss, list(map(Encoding, shown)), shown)

    def draw(self, centres: Tensor) -> Tensor:
        """(B, G) bool: a fresh mask of each cloud."""
        if self.mask == "block":
            start = torch.randint(centres.shape[1], (len(centres), 1, 1), device=centres.device)
            score = (centres - centres.gather(1, start.expand(-1, -1, 3))).square().sum(2)
        else:
            score = torch.rand(centres.shape[:2], device=centres.device)
        hidden = score.topk(self.masked, largest=False).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter(1, hidden, True)

    @property
    def encoder(self) -> PointTransformer:
        """The backbone."""
        assert isinstance(self.backbone, PointTransformer)
        return self.backbone

    def pictures(self) -> dict[str, list[Tensor]]:
        """Of the last step: clouds (B, n, 3) of all patches, of the visible ones, and with the hidden ones found."""
        if self._seen is None:
            return {}
        patches, mask, predicted = self._seen
        whole = patches.relative + patches.centres[:, :, None]
        visible = whole.masked_fill(mask[..., None, None], torch.nan)
        found = visible.masked_scatter(
            mask[..., None, None], (predicted.float() + kept(patches.centres, mask)[:, :, None])
        )
        return {"reconstruction": [cloud.flatten(1, 2) for cloud in (whole, visible, found)]}


class PointMAE(MaskedPoints):
    """Some patches of a cloud are hidden; the encoder sees the others, a decoder has to find the hidden points.

    Args:
        backbone: the encoder.
        mask_ratio: share of the patches that are hidden; paper 0.6.
        mask: `random` patches, or a `block` around a random one.
        decoder_depth: paper 4.
        norm: of the Chamfer distance; paper `l2`.
        training: paper: AdamW 1e-3, weight decay 0.05; 10 epochs of warm-up, cosine, 300 epochs.
    """

    def __init__(
        self,
        backbone: PointTransformer,
        mask_ratio: float = 0.6,
        mask: Literal["random", "block"] = "random",
        decoder_depth: int = 4,
        norm: Literal["l2", "l1"] = "l2",
        training: Training = RECIPE,
    ) -> None:
        objective = objectives.PointMAE(backbone.group_size, norm)
        super().__init__(backbone, objective, mask_ratio, mask, training)
        self.decoder = decoder_of(backbone, decoder_depth)

    def step(self, batch: Batch) -> Step:
        """The loss of a batch; monitoring sees two halves of the visible tokens as views of the cloud."""
        patches, tokens = self.patches(batch)
        return self.reconstruct(patches, tokens, self.draw(patches.centres))

    def reconstruct(self, patches: Patches, tokens: Tensor, mask: Tensor) -> Step:
        """One step with a given mask (B, G), True hidden."""
        visible = self.encoder.encode(kept(tokens, ~mask), kept(patches.centres, ~mask))
        predicted, _ = self.decoder(visible, patches.centres, mask)
        self._seen = patches, mask, predicted.detach()
        return self.ended([predicted, patches.relative[mask].view_as(predicted)], halves(visible), {})


class PointCMAE(MaskedPoints):
    """Point-MAE twice on each cloud: two masks, one encoder, two decoders that agree where both had to imagine.

    Args:
        backbone: the encoder; it sees both masked clouds as one batch.
        mask_ratio, mask, decoder_depth, norm, training: as in PointMAE.
        reconstruction_weight, contrast_weight, contrast: see `manyviews.objectives.PointCMAE`.
    """

    def __init__(
        self,
        backbone: PointTransformer,
        mask_ratio: float = 0.6,
        mask: Literal["random", "block"] = "random",
        decoder_depth: int = 4,
        norm: Literal["l2", "l1"] = "l2",
        reconstruction_weight: float = 1000.0,
        contrast_weight: float = 1.0,
        contrast: Literal["diagonal", "all_columns"] = "diagonal",
        training: Training = RECIPE,
    ) -> None:
        objective = objectives.PointCMAE(backbone.group_size, norm, reconstruction_weight, contrast_weight, contrast)
        super().__init__(backbone, objective, mask_ratio, mask, training)
        self.decoders = nn.ModuleList(decoder_of(backbone, decoder_depth) for _ in range(2))
        # A class token of each branch, and its position; evaluation leaves them out.
        self.branch, self.branch_position = (nn.Parameter(0.02 * torch.randn(2, backbone.dim)) for _ in range(2))

    def step(self, batch: Batch) -> Step:
        """The loss of a batch; monitoring sees the two branches' visible tokens as views of the cloud."""
        patches, tokens = self.patches(batch)
        return self.reconstruct_twice(patches, tokens, [self.draw(patches.centres) for _ in range(2)])

    def reconstruct_twice(self, patches: Patches, tokens: Tensor, masks: list[Tensor]) -> Step:
        """One step with given masks."""
        seen = [kept(tokens, ~mask) for mask in masks]
        places = [self.encoder.position(kept(patches.centres, ~mask)) for mask in masks]
        first = zip((self.branch, self.branch_position), (seen, places), strict=True)
        both, positions = (
            torch.cat([torch.cat([c.expand(len(x), 1, -1), x], 1) for c, x in zip(tokens_of, parts, strict=True)])
            for tokens_of, parts in first
        )
        encoded = self.encoder.through(both, positions)[:, 1:].chunk(2)
        views, features = [], []
        for decoder, visible, mask in zip(self.decoders, encoded, masks, strict=True):
            predicted, feature = decoder(visible, patches.centres, mask)
            views += [predicted, patches.relative[mask].view_as(predicted)]
            features.append(feature)
        self._seen = patches, masks[0], views[0].detach()
        return self.ended(views, [pooled(x) for x in encoded], {"tokens": features, "masks": masks})

    def no_weight_decay(self) -> list[str]:
        """The class tokens, as in the release, and their positions."""
        return ["branch", "branch_position"]


def decoder_of(backbone: PointTransformer, depth: int) -> PointDecoder:
    """A decoder that fits the encoder."""
    return PointDecoder(backbone.dim, backbone.heads, backbone.group_size, depth, backbone.drop_path)


def kept(x: Tensor, mask: Tensor) -> Tensor:
    """(B, n, ..): the rows of x (B, G, ..) where the mask, with n in each row, is True."""
    return x[mask].view(len(x), -1, *x.shape[2:])


def halves(tokens: Tensor) -> list[Tensor]:
    """Features of every other token, and of the rest: two views of one cloud."""
    return [pooled(tokens[:, ::2]), pooled(tokens[:, 1::2])]
