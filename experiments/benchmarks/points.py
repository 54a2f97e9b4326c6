"""What share of a Point-MAE training step the geometry takes: farthest points, neighbours, all of grouping.

    python experiments/benchmarks/points.py [--json experiments/results/points.json]

Process CPU time of one thread, best of rounds; on a GPU (--device cuda) wall time after a synchronisation. `tiny` is
the recipe on solids, `paper` Point-MAE's own sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import record

from manyviews.backbones import PointTransformer
from manyviews.backbones.points import farthest_points, nearest_points
from manyviews.methods import PointMAE

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "points": 512,
        "batch": 32,
        "depth": 1,
        "encoder": {"dim": 96, "depth": 3, "heads": 4, "groups": 32, "group_size": 16},
    },
    "paper": {"points": 1024, "batch": 32, "depth": 4, "encoder": {}},
}


def seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    found = []
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - started)
    return min(found[1:])  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for name, size in SIZES.items():
        method = PointMAE(PointTransformer(**size["encoder"]), decoder_depth=size["depth"]).to(arguments.device)
        points = torch.randn(size["batch"], size["points"], 3, device=arguments.device)
        batch, encoder = {"points": [points]}, method.encoder
        chosen = farthest_points(points, encoder.groups)
        centres = points[torch.arange(len(points), device=points.device)[:, None], chosen]

        def step(method: PointMAE = method, batch: dict[str, Any] = batch) -> None:
            method.training_step(batch, 0)["loss"].backward()
            method.zero_grad()

        parts = {
            "step": step,
            "farthest points": lambda p=points, e=encoder: farthest_points(p, e.groups),
            "neighbours": lambda p=points, c=centres, e=encoder: nearest_points(c, p, e.group_size),
            "grouping": lambda p=points, e=encoder: e.group(p),
        }
        found = {part: seconds(work, arguments.device, arguments.rounds) for part, work in parts.items()}
        row = {"size": name, "seconds": found, "share": {part: s / found["step"] for part, s in found.items()}}
        table.append(row)
        shares = ", ".join(f"{part} {1000 * s:.1f} ms ({s / found['step']:.1%})" for part, s in found.items())
        print(f"{name}: {shares}", flush=True)
    record(arguments.json, {"table": table, "device": arguments.device})


if __name__ == "__main__":
    main()
