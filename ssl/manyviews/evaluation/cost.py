"""What an encoder costs: tokens, operations, time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from manyviews.backbones import Encoding, views_of
from manyviews.distributed import LOCAL
from manyviews.evaluation.features import prepared
from manyviews.evaluation.joint import JointProtocol
from manyviews.evaluation.protocol import Result


@dataclass
class Cost(JointProtocol):
    """Of the backbone on the first samples of val, for one of them: tokens, billions of operations, milliseconds.

    `tokens` without prefix tokens, in the mean (their number may depend on the sample); `gflops` of all products,
    `attention_gflops` of those between queries, keys and values; `milliseconds` of the fastest pass, one process.

    Attributes:
        samples: how many are looked at. repeats: passes that are timed.
    """

    samples: int = 32
    repeats: int = 3
    name = "cost"
    texts = False

    def ready(self, module: Any, data: Any) -> None:
        """Every method has a backbone."""

    @torch.no_grad()
    @override
    def measure(self, module: Any, data: Any) -> Result:
        batches = prepared(module, data, "val", LOCAL)
        view = views_of(next(batches))[0][: self.samples]
        backbone = module.get_submodule(module.evaluated)
        # As plain products, so that those of attention are told from the others; the counter's hooks want gradients.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            found = Encoding.of(backbone(view))
        counts = counter.get_flop_counts()["Global"]
        seconds = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            backbone(view)
            if view.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        batches.close()
        scores = {
            "gflops": sum(counts.values()) / len(view) / 1e9,
            "attention_gflops": counts.get(torch.ops.aten.bmm, 0) / len(view) / 1e9,
            "milliseconds": 1000 * min(seconds) / len(view),
        }
        if found.tokens is not None:
            mask = found.token_mask
            many = found.tokens.shape[1] if mask is None else mask.sum(1).double().mean().item()
            scores["tokens"] = float(many - found.prefix_tokens)
        return Result(scores, {"samples": len(view), "threads": torch.get_num_threads(), "device": str(view.device)})
