"""What a training step costs on a GPU beside its encoder alone, and what the parts that were made for it cost.

    python experiments/benchmarks/device.py --json runs/gpu/device.json

Milliseconds by CUDA events, the mean of repeats after a warm-up; the step is timed inside of Lightning by a clock after
a synchronisation. Encoders take both views of a batch in bf16. Without a GPU (`--device cpu`) it only tries itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from record import record
from torch import Tensor

from manyviews import methods
from manyviews.backbones import ConvNet, TimmBackbone
from manyviews.backbones.points import group
from manyviews.evaluation.knn import knn_votes
from manyviews.monitoring import CollapseAlarm, Monitor
from manyviews.optim import Schedule
from manyviews.runs import FiniteGuard, StopOnSignal
from viewshards.views import Augmentation
from viewshards.views import device as on_device

STEPS, WARM = 30, 10


def milliseconds(work: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Mean time of a call."""
    for _ in range(3 if device == "cuda" else 1):
        work()
    if device != "cuda":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / repeats


class Same(torch.utils.data.Dataset[dict[str, Any]]):
    """The same batch, which is on the device already."""

    def __init__(self, views: list[Tensor]) -> None:
        rows = len(views[0])
        where = {"device": views[0].device}
        self.batch = {"image": views, "index": torch.arange(rows, **where), "group": torch.full((rows,), -1, **where)}

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.batch, "replaced": []}


class Clock(pl.Callback):
    """When the warm-up and the run ended."""

    def __init__(self, device: str) -> None:
        self.device, self.marks = device, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step in (WARM, STEPS):
            if self.device == "cuda":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())


def step(method: pl.LightningModule, views: list[Tensor], device: str, callbacks: Sequence[pl.Callback]) -> float:
    """Milliseconds of a step inside of Lightning."""
    clock = Clock(device)
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=STEPS, precision="bf16-mixed",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, clock],
    )  # fmt: skip
    trainer.fit(method, torch.utils.data.DataLoader(Same(views), batch_size=None))
    return 1e3 * (clock.marks[1] - clock.marks[0]) / (STEPS - WARM)


def encoders(device: str) -> dict[str, float]:
    """Encoders alone, by layout and compiled, and the steps of methods with them."""
    gpu = device == "cuda"
    rows, size = (256, 224) if gpu else (8, 16)
    found: dict[str, float] = {}
    views = [torch.randn(rows, 3, size, size, device=device) for _ in range(2)]
    both = torch.cat(views)
    for kind in ("resnet50", "vit_small_patch16_224") if gpu else ("small",):

        def made(kind: str = kind) -> torch.nn.Module:
            return TimmBackbone(kind).to(device) if gpu else ConvNet((8, 16))

        for layout in ("as given", "channels_last", "compiled")[: 3 if gpu else 2]:
            backbone, images = made().train(), both
            if layout != "as given":
                backbone, images = (each.to(memory_format=torch.channels_last) for each in (backbone, both))
            if layout == "compiled":
                backbone.compile()

            def encode(backbone: torch.nn.Module = backbone, images: Tensor = images) -> None:
                with torch.autocast(device, torch.bfloat16):
                    backbone(images).pooled.float().square().mean().backward()

            found[f"{kind}, {layout}"] = milliseconds(encode, device)
        for name in ("SimCLR", "BYOL", "MoCo"):
            for label, callbacks in (("Lightning alone", []), ("with our callbacks", _callbacks())):
                method = getattr(methods, name)(made())
                method.how = replace(method.how, schedule=Schedule(warmup_steps=1, scaling="none"))
                found[f"{kind}, step of {name}, {label}"] = step(method, views, device, callbacks)
    return found


def _callbacks() -> list[pl.Callback]:
    return [Monitor(50, 0), CollapseAlarm(), StopOnSignal(), FiniteGuard()]


def parts(device: str) -> dict[str, float]:
    """Colours of a batch, sampling of clouds, votes of the nearest neighbours."""
    gpu, found = device == "cuda", dict[str, float]()
    augmentation, rng = (
        Augmentation(224, (0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5),
        np.random.default_rng(0),
    )
    count = 512 if gpu else 4
    rows = torch.tensor([on_device.row(augmentation.draw(rng, 300, 300)) for _ in range(count)]).to(device)
    images = torch.rand(count, 3, 224, 224, device=device)
    found[f"colours of {count} views, eager"] = milliseconds(
        lambda: on_device.colour(images, rows, augmentation), device
    )
    if gpu:
        compiled = torch.compile(on_device.colour, fullgraph=True)
        found[f"colours of {count} views, compiled"] = milliseconds(
            lambda: compiled(images, rows, augmentation), device
        )
    points = torch.randn(128 if gpu else 4, 1024, 3, device=device)
    found[f"64 x 32 groups of {len(points)} clouds"] = milliseconds(lambda: group(points, 64, 32), device)
    bank, queries = torch.randn(100_000 if gpu else 1000, 512, device=device), torch.randn(1000, 512, device=device)
    label = torch.randint(0, 1000, (len(bank),), device=device)
    votes = lambda: knn_votes(queries, bank, label, 1000, (20,), (0.07,))  # noqa: E731
    found[f"votes of 1,000 queries among {len(bank):,}"] = milliseconds(votes, device)
    return found


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = parts(arguments.device) | encoders(arguments.device)
    for name, value in found.items():
        print(f"{name:60} {value:10.2f} ms")
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    record(arguments.json, {"milliseconds": found, "device": card})


if __name__ == "__main__":
    main()
