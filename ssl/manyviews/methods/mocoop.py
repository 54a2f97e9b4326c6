"""MoCoOp (Du, Niu, Zhao, 2024): a mixture of soft prompts with a router, on a frozen CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manyviews import objectives
from manyviews.backbones import Encoding, OpenClipText, views_of
from manyviews.methods.imagetext import ImageText
from manyviews.methods.method import Batch, Step
from manyviews.optim import Schedule, Training
from manyviews.sharding import whole
from manyviews.similarity import unit


class MoCoOp(ImageText):
    """G groups of templates, each a soft prompt around the class name; a router mixes the two best for an image.

    Only the prompts and the router learn. A prompt is kept as what it adds to the token embeddings of its group's first
    template, so it starts as that template.

    Args:
        backbone: pretrained image tower. text_backbone: pretrained open_clip text tower.
        classnames: in the order of the labels.
        templates: groups of templates with {c} for the name.
        dim: of the joint space.
        scale: of the frozen CLIP. text_weight, router_weight: see `manyviews.objectives.MoCoOp`.
        tokenizer: an open_clip model whose tokenizer is used.
        training: paper: SGD 0.032 at batch 32.
    """

    hand: Tensor
    ids: Tensor
    around: Tensor

    locked = ("backbone", "text_backbone", "projector", "text_projector")

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: OpenClipText,
        classnames: Sequence[str],
        templates: Sequence[Sequence[str]],
        dim: int = 512,
        scale: float = 100.0,
        text_weight: float = 5.0,
        router_weight: float = 1.0,
        tokenizer: str = "ViT-B-32",
        training: Training = Training(
            partial(torch.optim.SGD, lr=0.032, momentum=0.9), Schedule(warmup_steps=50, scaling="none")
        ),
    ) -> None:
        if not classnames or not templates or not all(templates):
            raise ValueError("MoCoOp needs class names and groups of at least one template")
        for template in (template for group in templates for template in group):
            if template.count("{c}") != 1:
                raise ValueError(f"a template has {{c}} once, got {template!r}")
        if training.locked is not None:
            raise ValueError("MoCoOp trains its prompts and its router alone: leave training.locked out")
        objective = objectives.MoCoOp(dim, len(templates), scale, text_weight, router_weight)
        super().__init__(backbone, text_backbone, objective, dim, training=training)
        import open_clip  # takes seconds

        self.tokenize: Any = open_clip.get_tokenizer(tokenizer, context_length=text_backbone.context)
        self.classnames, self.templates = list(classnames), [list(group) for group in templates]
        ids, around = zip(*(self._read(group[0]) for group in templates), strict=True)
        self.register_buffer("ids", torch.stack(ids), persistent=False)  # (G, C, L)
        self.register_buffer("around", torch.stack(around), persistent=False)  # (G, C, L): which word of the context
        words = int(self.around.max()) + 1
        self.prompts = nn.Parameter(torch.zeros(len(templates), words, text_backbone.width))
        self.register_buffer("hand", torch.zeros(len(templates), len(classnames), dim))

    def no_weight_decay(self) -> list[str]:
        """The prompts."""
        return ["prompts"]

    def _read(self, template: str) -> tuple[Tensor, Tensor]:
        """Token ids of a template with each class name, and at each place the number of the context word, or -1."""
        before, after = template.split("{c}")
        rows, places = [], []
        for name in self.classnames:
            counts = [len(self.tokenize.encode(part)) for part in (before, name, after)]
            ids = self.tokenize([template.format(c=name)])[0]
            place = torch.full_like(ids, -1)
            first, then = 1, 1 + counts[0] + counts[1]
            place[first : first + counts[0]] = torch.arange(counts[0])
            end = min(then + counts[2], len(ids) - 1)
            place[then:end] = torch.arange(counts[0], counts[0] + counts[2])[: max(0, end - then)]
            rows.append(ids)
            places.append(place)
        return torch.stack(rows), torch.stack(places)

    def prompt_features(self) -> Tensor:
        """(G, C, dim): unit features of every class by every group's soft prompt."""
        text: Any = self.text_backbone.model
        ids, around = self.ids.flatten(0, 1), self.around.flatten(0, 1)
        x, mask = text._embeds(ids)
        group = torch.arange(len(self.prompts), device=ids.device).repeat_interleave(self.ids.shape[1])
        added = self.prompts[group[:, None], around.clamp(min=0)]
        x = text.ln_final(text.transformer(x + torch.where(around[..., None] >= 0, added, 0), attn_mask=mask))
        pooled = x[torch.arange(len(x), device=x.device), ids.argmax(1)]
        return unit(self.text_projector(pooled)).view(*self.ids.shape[:2], -1)

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Features of the hand-written templates, the constants that prompts and router are held to.

        Raises:
            ValueError: if the data's classes are others, or in another order.
        """
        there = [name.replace("_", " ") for name in getattr(getattr(self.trainer, "datamodule", None), "classes", [])]
        if there and there != [name.replace("_", " ") for name in self.classnames]:
            raise ValueError(f"classnames must be those of the data, in their order: {', '.join(there[:20])}")
        super().on_fit_start()
        with whole(self):
            for g, group in enumerate(self.templates):
                each = []
                for template in group:
                    ids = self.tokenize([template.format(c=name) for name in self.classnames]).to(self.device)
                    each.append(self.embed_text(ids).pooled)
                self.hand[g] = unit(torch.stack(each).mean(0))

    def step(self, batch: Batch) -> Step:
        """The images against the prompts, which are the texts."""
        images = self.encode(self.backbone, views_of(batch))
        u, prompts = self.projector(images[0].pooled), self.prompt_features()
        context = {**self.context(batch), "prompts": prompts, "hand": self.hand}
        return Step(self.objective([u], **context), images, [u, prompts[0, batch["label"].clamp(min=0)]])

    def class_scores(self, images: Encoding) -> Tensor:
        """(B, C): what zero-shot classification uses in place of class names."""
        assert isinstance(self.objective, objectives.MoCoOp)
        return self.objective.scores(images.pooled, self.prompt_features())
