"""R@k between images and captions, exact over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.backbones import Encoding, views_of
from manyviews.distributed import Gather
from manyviews.evaluation import joint
from manyviews.evaluation.features import prepared
from manyviews.evaluation.joint import JointProtocol, finite, gathered, joined, part_of
from manyviews.evaluation.protocol import Result


@dataclass
class TextRetrieval(JointProtocol):
    """R@k of captions by an image and of images by a caption, on val.

    image to text: a hit if any caption of the image's sample is among the k best; text to image: if any natural view
    of the caption's sample is. Known duplicates (equal `group`) count as right. Ties: an equal score counts against
    the query if its item stands earlier.

    Attributes:
        k: the ranks that are reported.
    """

    k: tuple[int, ...] = (1, 5, 10)
    name = "text_retrieval"

    @torch.no_grad()
    def measure(self, module: Any, data: Any) -> Result:  # noqa: D102
        gather = distributed.current()
        (images, image_of), (texts, text_of), alike = self._embedded(module, data, gather)
        found = {
            "i2t": (images, image_of, texts, text_of, True),
            "t2i": (texts, text_of, images, image_of, False),
        }
        scores: dict[str, float] = {}
        details: dict[str, Any] = {"images": len(image_of), "captions": len(text_of)}
        for name, (queries, of_query, gallery, of_item, first) in found.items():
            ranks = self._ranks(module, queries, of_query, gallery, of_item, alike, first, gather)
            for k in self.k:
                scores[f"{name}_r{k}"] = (ranks < k).double().mean().item()
            middle = ranks.double().quantile(0.5).item()
            details |= {f"{name}_mean_rank": ranks.double().mean().item() + 1, f"{name}_median_rank": int(middle) + 1}
        return Result(scores, details)

    def _embedded(self, module: Any, data: Any, gather: Gather) -> Any:
        """Images and texts of all ranks with the index of their sample, and the group of each index."""
        images, texts, image_of, text_of, groups = [], [], [], [], []
        for batch in prepared(module, data, "val", gather):
            # Padding goes along, so that every rank has as many rows of everything; it is left out afterwards.
            index = torch.where(batch["weight"] > 0, batch["index"], -1).to(module.device)
            groups.append(torch.stack([index, batch["group"].to(module.device)], 1))
            for view in views_of(batch):
                images.append(module.embed_image(view))
                image_of.append(index)
            for m, ids in enumerate(batch["text"]):
                texts.append(module.embed_text(ids))
                text_of.append(torch.where(batch["text_present"][:, m].to(module.device), index, -1))

        def everywhere(parts: list[Encoding], of: list[Tensor]) -> tuple[Encoding, Tensor]:
            own = torch.cat(of)
            everyone = own if gather.world == 1 else gather(len(own)).gather(own)
            real = everyone >= 0
            return part_of(gathered(joined(parts), gather), real), everyone[real]

        pairs = torch.cat(groups)
        pairs = pairs if gather.world == 1 else gather(len(pairs)).gather(pairs)
        pairs = pairs[pairs[:, 0] >= 0]
        alike = torch.full((int(pairs[:, 0].max()) + 1,), -1, dtype=torch.int64, device=pairs.device)
        alike[pairs[:, 0]] = pairs[:, 1]
        return everywhere(images, image_of), everywhere(texts, text_of), alike

    @staticmethod
    def _ranks(
        module: Any, queries: Encoding, of_query: Tensor, gallery: Encoding, of_item: Tensor, alike: Tensor,
        images_ask: bool, gather: Gather,
    ) -> Tensor:  # fmt: skip
        """(queries of all ranks,): wrong items before the first right one. Each rank takes a share of the queries."""
        ranks = torch.zeros(len(of_query), dtype=torch.int64, device=of_query.device)
        place = torch.arange(len(of_item), device=of_item.device)
        for start in range(gather.rank * joint.CHUNK, len(of_query), gather.world * joint.CHUNK):
            cut = slice(start, start + joint.CHUNK)
            some = part_of(queries, cut)
            blocks = []
            for at in range(0, len(of_item), joint.CHUNK):
                items = part_of(gallery, slice(at, at + joint.CHUNK))
                pair = (some, items) if images_ask else (items, some)
                block = module.similarity(*pair)[0 if images_ask else 1]
                blocks.append(block if images_ask else block.T)
            s = finite(torch.cat(blocks, 1).float())
            mine = alike[of_query[cut], None]
            right = (of_query[cut, None] == of_item) | ((mine == alike[of_item]) & (mine >= 0))
            best, where = s.masked_fill(~right, -torch.inf).max(1, keepdim=True)
            before = (s > best) | ((s == best) & (place < where))
            ranks[cut] = (before & ~right).sum(1)
        return gather.sum(ranks).cpu()
