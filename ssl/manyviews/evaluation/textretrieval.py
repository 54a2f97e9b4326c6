"""R@k between images and captions, exact over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from manyviews import distributed
from manyviews.backbones import Encoding, views_of
from manyviews.distributed import Gather
from manyviews.evaluation import joint
from manyviews.evaluation.features import prepared
from manyviews.evaluation.joint import JointProtocol, embed_texts, finite
from manyviews.evaluation.protocol import Result, chance_at
from manyviews.evaluation.zeroshot import ZeroShot


@dataclass
class TextRetrieval(JointProtocol):
    """R@k of captions by an image and of images by a caption, on val.

    image to text: a hit if any caption of the image's sample is among the k best; text to image: if any natural view
    of the caption's sample is. Known duplicates (equal `group`) count as right, and so do equal captions: of a caption
    every image that has it, of an image every caption that reads as one of its own. Ties: an equal score counts against
    the query if its item stands earlier. Images without a caption can be found, and ask nothing.

    Where no sample has a caption, the classes have: the first prompt of `bank` for each, right for every image of the
    class.

    Attributes:
        k: the ranks that are reported.
        bank: see `ZeroShot`.
    """

    k: tuple[int, ...] = (1, 5, 10)
    bank: str = "plain"
    name = "text_retrieval"

    @torch.no_grad()
    @override
    def measure(self, module: Any, data: Any) -> Result:
        gather = distributed.current()
        (images, image_of), (texts, text_of), alike, said, unspoken = self._embedded(module, data, gather)
        sample = image_of
        self._check_bank(bool(len(text_of)))
        if not len(text_of):
            if unspoken:
                asked = ", ".join(data.text.languages)
                raise ValueError(f"the captions of val are in other languages than {asked} (data.text.language)")
            texts, text_of, image_of, said = self._of_classes(module, data, images, image_of, alike[:, 1])
            alike = torch.full_like(alike[: len(said), :1], -1)
        pairs = Pairs(image_of, text_of, alike[:, 0], said)
        scores: dict[str, float] = {}
        chance: dict[str, float] = {}
        trials: dict[str, int] = {}
        details: dict[str, Any] = {"images": len(image_of), "captions": len(text_of), "texts": int(said.max()) + 1}
        for name, queries, gallery, first in (("i2t", images, texts, True), ("t2i", texts, images, False)):
            ranks, right = self._ranks(module, queries, gallery, pairs, first, gather)
            asks = right > 0  # an image without a caption asks nothing
            ranks, right, asking = ranks[asks], right[asks], (sample if first else text_of).cpu()[asks].unique()
            for k in self.k:
                scores[f"{name}_r{k}"] = (ranks < k).double().mean().item()
                chance[f"{name}_r{k}"] = chance_at(right, len(text_of if first else image_of), k)
                trials[f"{name}_r{k}"] = len(asking)
            middle = ranks.double().quantile(0.5).item()
            details |= {f"{name}_mean_rank": ranks.double().mean().item() + 1, f"{name}_median_rank": int(middle) + 1}
        return Result(scores, details, chance=chance, trials=trials)

    @override
    def ready(self, module: Any, data: Any) -> None:
        super().ready(module, data)
        if self.bank != "plain":
            self._check_bank(bool(next(iter(data.evaluation_loader("val", batch_size=32)))["text_present"].any()))
            ZeroShot(self.bank).read(data.classes)

    def _check_bank(self, captioned: bool) -> None:
        if captioned and self.bank != "plain":
            raise ValueError(f"retrieval asks with the captions that samples have, and bank {self.bank!r} is not used")

    def _embedded(self, module: Any, data: Any, gather: Gather) -> Any:
        """Images and texts of all ranks with the index of their sample, and the group and label of each index.

        And which texts are equal, and how many samples have captions in other languages only.
        """
        images, texts, image_of, text_of, groups, words, unspoken = [], [], [], [], [], [], 0
        for batch in prepared(module, data, "val", gather):
            # Padding goes along, so that every rank has as many rows of everything; it is left out afterwards.
            index = torch.where(batch["weight"] > 0, batch["index"], -1).to(module.device)
            groups.append(torch.stack([index, *(batch[name].to(module.device) for name in ("group", "label"))], 1))
            unspoken += int((batch.get("text_unspoken", False) & (batch["weight"] > 0)).sum())
            for view in views_of(batch):
                images.append(module.embed_image(view))
                image_of.append(index)
            for m, ids in enumerate(batch["text"]):
                texts.append(module.embed_text(ids))
                words.append(ids)
                text_of.append(torch.where(batch["text_present"][:, m].to(module.device), index, -1))

        def everywhere(parts: list[Encoding], of: list[Tensor]) -> tuple[Encoding, Tensor]:
            own = torch.cat(of)
            everyone = own if gather.world == 1 else gather(len(own)).gather(own)
            real = everyone >= 0
            return Encoding.cat(parts).gather(gather).rows(real), everyone[real]

        pairs = torch.cat(groups)
        pairs = pairs if gather.world == 1 else gather(len(pairs)).gather(pairs)
        pairs = pairs[pairs[:, 0] >= 0]
        alike = torch.full((int(pairs[:, 0].max()) + 1, 2), -1, dtype=torch.int64, device=pairs.device)
        alike[pairs[:, 0]] = pairs[:, 1:]
        read = torch.cat(words)
        own = torch.cat(text_of)
        if gather.world > 1:
            read, own = (gather(len(x)).gather(x) for x in (read, own))
        said = torch.unique(read[own >= 0], dim=0, return_inverse=True)[1]
        elsewhere = gather.sum(torch.tensor(unspoken, device=module.device))
        return everywhere(images, image_of), everywhere(texts, text_of), alike, said, bool(elsewhere)

    def _of_classes(
        self, module: Any, data: Any, images: Encoding, image_of: Tensor, label: Tensor
    ) -> tuple[Encoding, Tensor, Tensor, Tensor]:
        """A prompt for each class in the place of captions: its embeddings, whose they are, whose the images are."""
        names, prompts = ZeroShot(self.bank).read(data.classes)
        of_class = label[image_of]
        if not names or not bool((of_class >= 0).any()):
            raise ValueError("no sample of val has a caption, and there are no names of classes to take for one")
        numbers = torch.arange(len(names), device=image_of.device)
        return embed_texts(module, data, [each[0] for each in prompts]), numbers, of_class, numbers

    @staticmethod
    def _ranks(
        module: Any, queries: Encoding, gallery: Encoding, pairs: Pairs, images_ask: bool, gather: Gather
    ) -> tuple[Tensor, Tensor]:
        """(queries of all ranks,) wrong items before the first right one, and how many are right.

        Each rank takes a share of the queries.
        """
        of_query, of_item = (pairs.image_of, pairs.text_of) if images_ask else (pairs.text_of, pairs.image_of)
        ranks, counts = torch.zeros(2, len(of_query), dtype=torch.int64, device=of_query.device)
        place = torch.arange(len(of_item), device=of_item.device)
        for start in range(gather.rank * joint.CHUNK, len(of_query), gather.world * joint.CHUNK):
            cut = slice(start, start + joint.CHUNK)
            some = queries.rows(cut)
            blocks = []
            for at in range(0, len(of_item), joint.CHUNK):
                items = gallery.rows(slice(at, at + joint.CHUNK))
                pair = (some, items) if images_ask else (items, some)
                block = module.similarity(*pair)[0 if images_ask else 1]
                blocks.append(block if images_ask else block.T)
            s = finite(torch.cat(blocks, 1).float())
            right = pairs.right(cut, images_ask)
            best, where = s.masked_fill(~right, -torch.inf).max(1, keepdim=True)
            before = (s > best) | ((s == best) & (place < where))
            ranks[cut], counts[cut] = (before & ~right).sum(1), right.sum(1)
        return gather.sum(ranks).cpu(), gather.sum(counts).cpu()


class Pairs:
    """Which texts are right for which images.

    Args:
        image_of, text_of: (images,) and (texts,): their samples. alike: (samples,) group of each, -1: unknown.
        said: (texts,): equal numbers for equal texts.
    """

    def __init__(self, image_of: Tensor, text_of: Tensor, alike: Tensor, said: Tensor) -> None:
        self.image_of, self.text_of, self.alike, self.said = image_of, text_of, alike, said
        self.base = int(said.max()) + 1
        self.has = torch.unique(text_of * self.base + said)
        """Every (sample, text) that there is, as one sorted number."""

    def right(self, cut: slice, images_ask: bool) -> Tensor:
        """(queries, items) bool for some images as queries and texts as items, or the other way round."""
        image, text, said = self.image_of[:, None], self.text_of, self.said
        if images_ask:
            image = image[cut]
        else:
            text, said = text[cut], said[cut]
        group = self.alike[image.clamp(min=0)]
        wanted = image * self.base + said
        place = torch.searchsorted(self.has, wanted).clamp(max=len(self.has) - 1)
        found: Tensor = (image == text) | (self.has[place] == wanted) | ((group == self.alike[text]) & (group >= 0))
        return found if images_ask else found.mT
