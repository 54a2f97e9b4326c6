"""Methods that compare tokens: FILIP, Wukong, CG-VLM, FDT, MGCA, ORMA, and COSMO's pooled latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manyviews import distributed, objectives
from manyviews.backbones import Encoding
from manyviews.heads import LatentPool, LogitScale, TokenLearner
from manyviews.methods.imagetext import ADAMW, ImageText
from manyviews.methods.method import Batch
from manyviews.objectives import Objective
from manyviews.objectives.clip import Positives
from manyviews.optim import OptimizerFactory, Schedule
from manyviews.similarity import unit
from manyviews.tokens import late_interaction, masked_mean, transported


class TokenImageText(ImageText):
    """An objective over projected tokens: patches (no class token) and words.

    Args:
        backbone, text_backbone, objective, dim, optimizer, schedule, grad_cache, locked: as in ImageText.
        reduce: patches to fewer tokens, (n, T, dim) to (n, T', dim); None: all patches.
    """

    needs_tokens: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: Objective,
        dim: int = 256,
        reduce: nn.Module | None = None,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
    ) -> None:
        super().__init__(
            backbone, text_backbone, objective, dim,
            optimizer=optimizer, schedule=schedule, grad_cache=grad_cache, locked=locked,
        )  # fmt: skip
        self.token_projector = nn.Linear(int(backbone.width), dim, bias=False)  # type: ignore[arg-type]
        self.text_token_projector = nn.Linear(int(text_backbone.width), dim, bias=False)  # type: ignore[arg-type]
        self.reduce: nn.Module | None = reduce

    def patches(self, image: Encoding) -> tuple[Tensor, Tensor]:
        """(n, T, dim) patches in the joint space and their mask."""
        assert image.tokens is not None and image.token_mask is not None
        tokens = self.token_projector(image.tokens[:, image.prefix_tokens :])
        if self.reduce is None:
            return tokens, image.token_mask[:, image.prefix_tokens :]
        fewer = self.reduce(tokens)
        return fewer, torch.ones(fewer.shape[:2], dtype=torch.bool, device=fewer.device)

    def words(self, text: Encoding) -> tuple[Tensor, Tensor]:
        """(n, L, dim) words in the joint space and their mask."""
        assert text.tokens is not None and text.token_mask is not None
        return self.text_token_projector(text.tokens), text.token_mask

    def compare_pairs(  # noqa: D102
        self, images: list[Encoding], texts: list[Encoding], batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        (v, mask_v), (t, mask_t) = self.patches(images[0]), self.words(texts[0])
        pair = self.whole(images[0], texts[0], (v, mask_v), (t, mask_t))
        context = {**self.context(batch), "tokens": [v, t], "masks": [mask_v, mask_t]}
        return self.objective(pair, gather=distributed.current(), **context), pair

    def whole(
        self, image: Encoding, text: Encoding, patches: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """What stands for the whole image and the whole text: here the means of their unit tokens."""
        return [masked_mean(unit(tokens), mask) for tokens, mask in (patches, words)]

    def joint_image(self, features: Encoding) -> Encoding:  # noqa: D102
        tokens, mask = self.patches(features)
        tokens = unit(tokens)
        return Encoding(masked_mean(tokens, mask), tokens, mask)

    def joint_text(self, features: Encoding) -> Encoding:  # noqa: D102
        tokens, mask = self.words(features)
        tokens = unit(tokens)
        return Encoding(masked_mean(tokens, mask), tokens, mask)


class FILIP(TokenImageText):
    """FILIP (Yao et al., ICLR 2022): token-wise late interaction.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        dim: of the joint space of tokens; paper 256.
        logit_scale: s; default 1/0.07, learned, kept in [1, 100].
        keep: share of tokens by which an item is seen by others, see the objective.
        reduce: patches to fewer tokens (Wukong: `manyviews.heads.TokenLearner`); None: all.
        optimizer: paper: LAMB; here AdamW as CLIP's.
        schedule, grad_cache, locked: as in CLIP.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 256,
        logit_scale: LogitScale | None = None,
        keep: float = 1.0,
        reduce: nn.Module | None = None,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
        positives: Positives = "own",
    ) -> None:
        objective = objectives.FILIP(logit_scale, keep, positives)
        super().__init__(
            backbone, text_backbone, objective, dim, reduce, optimizer, schedule, grad_cache, locked
        )  # fmt: skip
        # Only tokens are compared: the maps of pooled features would never get a gradient.
        self.projector = self.text_projector = nn.Identity()

    def similarity(self, images: Encoding, texts: Encoding) -> tuple[Tensor, Tensor]:
        """(B, M) each: mean over patches of their best word, and mean over words of their best patch."""
        (v, mask_v), (t, mask_t) = _tokens(images), _tokens(texts)
        return late_interaction(v, t, mask_v, mask_t), late_interaction(t, v, mask_t, mask_v).T


class Wukong(FILIP):
    """Wukong (Gu et al., NeurIPS 2022): a locked image tower, FILIP on a reduced set of visual tokens.

    Args:
        backbone: a pretrained image tower. text_backbone: text tower.
        dim: of the joint space; paper 256. tokens: n', how many visual tokens are left; paper 12 (B) and 24 (L).
        groups: of the reducing convolutions; paper 8.
        logit_scale, optimizer, schedule, grad_cache: as in FILIP.
        locked: the paper's [backbone].
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 256,
        tokens: int = 12,
        groups: int = 8,
        logit_scale: LogitScale | None = None,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = ("backbone",),
        positives: Positives = "own",
    ) -> None:
        reduce = TokenLearner(dim, tokens, groups)
        super().__init__(
            backbone, text_backbone, dim, logit_scale, 1.0, reduce, optimizer, schedule, grad_cache, locked,
            positives,
        )  # fmt: skip


class CGVLM(TokenImageText):
    """CG-VLM's contrastive alignment (Liu et al., 2023): the mean patch against the mean word.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens; the paper has word embeddings only.
        dim: of the joint space.
        logit_scale: s; default 1/0.07, learned, kept in [1, 100].
        optimizer, schedule, grad_cache, locked: as in CLIP. The paper locks the image tower.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 256,
        logit_scale: LogitScale | None = None,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
        positives: Positives = "own",
    ) -> None:
        super().__init__(
            backbone,
            text_backbone,
            objectives.CGVLM(logit_scale, positives),
            dim,
            None,
            optimizer,
            schedule,
            grad_cache,
            locked,
        )
        self.projector = self.text_projector = nn.Identity()


class ORMA(TokenImageText):
    """Optimal-transport alignment at three scales, after ORMA (BIBM 2024).

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        objective: see `manyviews.objectives.ORMA`.
        dim: of the joint space.
        optimizer, schedule, grad_cache, locked: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: objectives.ORMA | None = None,
        dim: int = 256,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
    ) -> None:
        super().__init__(
            backbone, text_backbone, objective or objectives.ORMA(), dim, None, optimizer, schedule, grad_cache, locked
        )

    def whole(self, image: Encoding, text: Encoding, patches: Any, words: Any) -> list[Tensor]:  # noqa: D102
        return [self.projector(image.pooled), self.text_projector(text.pooled)]

    def joint_image(self, features: Encoding) -> Encoding:  # noqa: D102
        return _with_pooled(super().joint_image(features), self.projector(features.pooled))

    def joint_text(self, features: Encoding) -> Encoding:  # noqa: D102
        return _with_pooled(super().joint_text(features), self.text_projector(features.pooled))

    def similarity(self, images: Encoding, texts: Encoding) -> tuple[Tensor, Tensor]:
        """(B, M), the same both ways: cosine of the wholes, multi-token similarity and minus transport cost, added."""
        (r, mask_r), (t, mask_t) = _tokens(images), _tokens(texts)
        assert isinstance(self.objective, objectives.ORMA)
        cost, multi = transported(t, r, mask_t, mask_r, self.objective.epsilon, True, self.objective.tolerance)
        scores = images.pooled @ texts.pooled.T + multi.T + cost.T
        return scores, scores


class MGCA(TokenImageText):
    """MGCA (Wang et al., NeurIPS 2022): instances, tokens and prototypes.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        objective: see `manyviews.objectives.MGCA`; its dim is the joint space's. Default 128 and 500 prototypes.
        dim: of the joint space.
        hidden: width of the heads' hidden layer; paper 2048.
        optimizer: paper: AdamW 2e-5, weight decay 0.05, from pretrained towers.
        schedule: paper: warm-up for 40 % of all steps, cosine.
        grad_cache, locked: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: objectives.MGCA | None = None,
        dim: int = 128,
        hidden: int = 2048,
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=2e-5, weight_decay=0.05),
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
    ) -> None:
        super().__init__(
            backbone, text_backbone, objective or objectives.MGCA(dim), dim, None,
            optimizer, schedule, grad_cache, locked,
        )  # fmt: skip
        widths = int(backbone.width), int(text_backbone.width)  # type: ignore[arg-type]
        self.projector, self.text_projector = (self._head(width, hidden, dim) for width in widths)
        self.token_heads = nn.ModuleList(self._head(width, hidden, dim) for width in widths)
        self.token_projector = self.text_token_projector = nn.Identity()  # type: ignore[assignment]

    @staticmethod
    def _head(width: int, hidden: int, dim: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim),
            nn.BatchNorm1d(dim, affine=False),
        )  # fmt: skip

    def patches(self, image: Encoding) -> tuple[Tensor, Tensor]:  # noqa: D102
        tokens, mask = super().patches(image)
        return self._local(0, tokens, mask)

    def words(self, text: Encoding) -> tuple[Tensor, Tensor]:  # noqa: D102
        tokens, mask = super().words(text)
        return self._local(1, tokens, mask)

    def _local(self, modality: int, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The head's BatchNorm counts valid tokens only."""
        valid = self.token_heads[modality](tokens[mask])
        return valid.new_zeros(*mask.shape, valid.shape[1]).masked_scatter(mask[..., None], valid), mask

    def whole(self, image: Encoding, text: Encoding, patches: Any, words: Any) -> list[Tensor]:  # noqa: D102
        return [self.projector(image.pooled), self.text_projector(text.pooled)]

    def joint_image(self, features: Encoding) -> Encoding:  # noqa: D102
        return Encoding(unit(self.projector(features.pooled)))

    def joint_text(self, features: Encoding) -> Encoding:  # noqa: D102
        return Encoding(unit(self.text_projector(features.pooled)))


class FDT(ImageText):
    """FDT (Chen et al., CVPR 2023): both modalities as sparse mixtures of one codebook.

    Args:
        backbone: image tower with tokens. text_backbone: text tower with tokens.
        codes, temperature, logit_scale: see `manyviews.objectives.FDT`. dim: of a code.
        optimizer: paper: AdamW 1e-3, betas (0.9, 0.98), weight decay 0.1.
        schedule: paper: 2,500 steps of warm-up, cosine.
        grad_cache, locked: as in CLIP.
        positives: as in CLIP.
    """

    needs_tokens: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        codes: int = 16384,
        dim: int = 512,
        temperature: float = 1000.0,
        logit_scale: LogitScale | None = None,
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1),
        schedule: Schedule = Schedule(warmup_steps=2500, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
        positives: Positives = "own",
    ) -> None:
        widths = int(backbone.width), int(text_backbone.width)  # type: ignore[arg-type]
        objective = objectives.FDT(widths, codes, dim, temperature, scale=logit_scale, positives=positives)
        super().__init__(
            backbone, text_backbone, objective, dim, nn.Identity(), nn.Identity(),
            optimizer, schedule, grad_cache, locked,
        )  # fmt: skip

    def compare_pairs(  # noqa: D102
        self, images: list[Encoding], texts: list[Encoding], batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        tokens, masks = zip(*(_patches(each[0]) for each in (images, texts)), strict=True)
        pair = [images[0].pooled, texts[0].pooled]
        whole = [each[:, : min(x.shape[1] for x in pair)] for each in pair]  # they take no part
        context = {**self.context(batch), "tokens": list(tokens), "masks": list(masks)}
        loss = self.objective(whole, gather=distributed.current(), **context)
        with torch.no_grad():
            return loss, [self.joint_image(images[0]).pooled, self.joint_text(texts[0]).pooled]

    def joint_image(self, features: Encoding) -> Encoding:  # noqa: D102
        assert isinstance(self.objective, objectives.FDT)
        return Encoding(self.objective.embed(*_patches(features), 0))

    def joint_text(self, features: Encoding) -> Encoding:  # noqa: D102
        assert isinstance(self.objective, objectives.FDT)
        return Encoding(self.objective.embed(*_patches(features), 1))


class COSMO(ImageText):
    """COSMO's contrastive part (Wang et al., 2024): a learned query pools the tokens of each side.

    Args:
        backbone: image tower with tokens; the paper locks CLIP's. text_backbone: the unimodal half of a language
            model, or any text tower with tokens.
        dim: of the joint space; paper 512. heads: of the pooling attention.
        logit_scale: s; the paper starts at exp(0.2), learned and free.
        optimizer, schedule, grad_cache, locked: as in CLIP.
        positives: as in CLIP.
    """

    needs_tokens: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        heads: int = 8,
        logit_scale: LogitScale | None = None,
        optimizer: OptimizerFactory = ADAMW,
        schedule: Schedule = Schedule(warmup_steps=2000, scaling="none"),
        grad_cache: int = 0,
        locked: Sequence[str] = (),
        positives: Positives = "own",
    ) -> None:
        image, text = (LatentPool(int(tower.width), dim, heads) for tower in (backbone, text_backbone))  # type: ignore[arg-type]
        objective = objectives.CLIP(logit_scale or LogitScale(math.exp(0.2), None), positives=positives)
        super().__init__(
            backbone, text_backbone, objective, dim, image, text, optimizer, schedule, grad_cache, locked
        )  # fmt: skip

    def compare_pairs(  # noqa: D102
        self, images: list[Encoding], texts: list[Encoding], batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        pair = [self.projector(*_patches(images[0])), self.text_projector(*_patches(texts[0]))]
        return self.objective(pair, gather=distributed.current(), **self.context(batch)), pair

    def joint_image(self, features: Encoding) -> Encoding:  # noqa: D102
        return Encoding(unit(self.projector(*_patches(features))))

    def joint_text(self, features: Encoding) -> Encoding:  # noqa: D102
        return Encoding(unit(self.text_projector(*_patches(features))))


def _patches(features: Encoding) -> tuple[Tensor, Tensor]:
    """Tokens and mask without the prefix tokens."""
    assert features.tokens is not None and features.token_mask is not None
    return features.tokens[:, features.prefix_tokens :], features.token_mask[:, features.prefix_tokens :]


def _tokens(joint: Encoding) -> tuple[Tensor, Tensor]:
    assert joint.tokens is not None and joint.token_mask is not None
    return joint.tokens, joint.token_mask


def _with_pooled(joint: Encoding, pooled: Tensor) -> Encoding:
    return Encoding(unit(pooled), joint.tokens, joint.token_mask)
