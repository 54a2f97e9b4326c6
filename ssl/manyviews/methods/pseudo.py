"""Open-world methods with a classifier: BaCon (Bai et al., NeurIPS 2023) and CPL (Sun et al., ICCV 2023)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import Schedule, Training


class _Partly(Method):
    """A classifier beside the projector, and labels of which only some are shown: the first classes, in part.

    The hidden labels never reach the objective, so that one labelled data set serves for training and evaluation.
    """

    takes_chunks = False

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        objective: objectives.Objective,
        training: Training,
        classes: int,
        known: int,
        labelled: float,
    ) -> None:
        super().__init__(backbone, head, objective, training)
        if not 0 < known <= classes or not 0 < labelled <= 1:
            raise ValueError(f"known={known} of classes={classes}, labelled={labelled}: out of range")
        self.classifier = nn.Linear(width_of(backbone), classes)
        self.known, self.labelled = known, labelled

    def shown(self, batch: Batch) -> Tensor:
        """(n,): the labels that are not hidden; which images have one depends on their index alone."""
        label, index = batch["label"], batch["index"]
        lucky = (index * 2654435761 % 2**32).float() / 2**32 < self.labelled
        return torch.where((label < self.known) & lucky, label, -1)


class BaCon(_Partly):
    """Contrast and classification, each learning from the other.

    What is simplified stands with the objective.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        classes: in all. known: the first so many may be labelled. labelled: share of their images that is.
        temperature, supervised, soft_from: see the objective.
        projector_hidden: width of the hidden layer. projector_out: of the embedding.
        training: authors: SGD 0.1, on the last block of a DINO ViT.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        known: int,
        labelled: float = 0.5,
        temperature: float = 0.07,
        supervised: float = 0.35,
        soft_from: int = 1,
        projector_hidden: int = 2048,
        projector_out: int = 256,
        training: Training = Training(
            partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-5), Schedule(warmup_epochs=0, scaling="none")
        ),
    ) -> None:
        head = projector(width_of(backbone), projector_hidden, projector_out)
        objective = objectives.BaCon(temperature, supervised=supervised, soft_from=soft_from)
        super().__init__(backbone, head, objective, training, classes, known, labelled)

    def step(self, batch: Batch) -> Step:
        """The classifier sees the features of both views."""
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        context = {**self.context(batch), "label": self.shown(batch)}
        return Step(self.objective(z, logits=[self.classifier(view.pooled) for view in h], **context), h, z)


class CPL(_Partly):
    """Partners in the batch and confident guesses; the first view is the weak one.

    Args:
        backbone: images to an Encoding, with an attribute `width`; the tokens of its feature map are the parts.
        classes: in all. known: the first so many may be labelled. labelled: share of their images that is.
        pair, pseudo, entropy, accept: see the objective.
        parts: the feature map is pooled to so many tokens, that vote; 0: no votes.
        training: authors: Adam 2e-4, batch 128, 50 epochs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        known: int,
        labelled: float = 0.5,
        pair: float = 0.5,
        pseudo: float = 0.5,
        entropy: float = 1.0,
        accept: float = 0.5,
        parts: int = 4,
        training: Training = Training(partial(torch.optim.Adam, lr=2e-4), Schedule(warmup_epochs=0, scaling="none")),
    ) -> None:
        objective = objectives.CPL(pair, pseudo, entropy, accept)
        super().__init__(backbone, nn.Identity(), objective, training, classes, known, labelled)
        self.parts = parts

    def step(self, batch: Batch) -> Step:
        """Features are the projections; the parts of the weak view are looked up without a gradient."""
        h = self.encode(self.backbone, views_of(batch))
        z = [view.pooled for view in h]
        context = {**self.context(batch), "label": self.shown(batch)}
        if self.parts and h[0].tokens is not None:
            weak = h[0].patches()[0].detach().transpose(1, 2)
            context["parts"] = nn.functional.adaptive_avg_pool1d(weak, self.parts).transpose(1, 2)
        return Step(self.objective([self.classifier(view) for view in z], features=z[0], **context), h, z)
