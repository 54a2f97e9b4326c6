"""A loss, forward and backward, against a peer's in the same run: CPU time and peak memory.

    python experiments/benchmarks/loss.py [--rows 1024 ... 32768] [--json experiments/results/loss.json]
    python experiments/benchmarks/loss.py --loss CLIP --width 512 --rows 4096 16384 [--json ...]

NTXent against lightly's NTXentLoss, CLIP against open_clip's ClipLoss, SigLIP against its SigLipLoss. Each cell runs
in a process of its own (peak memory is a process's), one thread; the time is the process's CPU time, the best of
`repeats`, interleaved. Rows are rows of the similarity matrix (of NTXent: 2 views). The peers hold several N x N
matrices: cells that would need more than --memory-gb are not run. On a GPU (--device cuda) time is by CUDA events.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import record

PEERS = {"NTXent": "lightly", "CLIP": "open_clip", "SigLIP": "open_clip"}


def contestant(name: str, loss: str, device: str) -> Any:
    """A function of two views (n, D). CLIP and SigLIP start as open_clip starts them, with a learned scale."""
    import torch

    if name == "ours":
        from manyviews import objectives

        made = objectives.NTXent(0.1) if loss == "NTXent" else getattr(objectives, loss)()
        made = made.to(device)
        return lambda a, b: made([a, b])
    if loss == "NTXent":
        from lightly.loss import NTXentLoss

        return NTXentLoss(temperature=0.1)
    import open_clip.loss
    from torch.nn.functional import normalize

    first = math.log(10 if loss == "SigLIP" else 1 / 0.07)
    t, bias = (torch.tensor(x, device=device, requires_grad=True) for x in (first, -10.0))
    peer = open_clip.loss.SigLipLoss() if loss == "SigLIP" else open_clip.loss.ClipLoss()
    numbers = (lambda: (t.exp(), bias)) if loss == "SigLIP" else lambda: (t.exp(),)
    return lambda a, b: peer(normalize(a, dim=1), normalize(b, dim=1), *numbers())


def cell(name: str, kind: str, rows: int, width: int, device: str) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    loss = contestant(name, kind, device)
    generator = torch.Generator().manual_seed(0)
    n = rows // 2 if kind == "NTXent" else rows
    z = [torch.randn(n, width, generator=generator).to(device).requires_grad_() for _ in range(2)]
    loss(*(v[:64] for v in z)).backward()  # warm
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        loss(*z).backward()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            value = loss(*z)
            value.backward()
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / 5
        megabytes = (torch.cuda.max_memory_allocated() - held) / 2**20
    else:
        started = time.process_time()
        value = loss(*z)
        value.backward()
        seconds = time.process_time() - started
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    return {"seconds": seconds, "megabytes": megabytes, "loss": value.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=sorted(PEERS), default="NTXent")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cell", nargs=2, metavar=("NAME", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        name, rows = arguments.cell
        print(json.dumps(cell(name, arguments.loss, int(rows), arguments.width, arguments.device)))
        return
    table, rival = [], PEERS[arguments.loss]
    print(f"{'rows':>6} {'ours s':>9} {'MB':>7} {rival + ' s':>11} {'MB':>7}   {'faster':>7} {'smaller':>8}")
    for rows in arguments.rows:
        best: dict[str, dict[str, float]] = {}
        for _ in range(arguments.repeats):
            for name in ("ours", rival):
                if name == rival and 4 * rows**2 * 4 / 2**30 > arguments.memory_gb:
                    continue
                command = [sys.executable, __file__, "--cell", name, str(rows), "--device", arguments.device]
                command += ["--width", str(arguments.width), "--loss", arguments.loss]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    best[name] = found
        ours, peer = best["ours"], best.get(rival)
        row = {"rows": rows, "ours": ours, rival: peer}
        line = f"{rows:>6} {ours['seconds']:>9.3f} {ours['megabytes']:>7.0f} "
        if peer:
            row |= {"faster": peer["seconds"] / ours["seconds"], "smaller": peer["megabytes"] / ours["megabytes"]}
            assert abs(peer["loss"] - ours["loss"]) < 1e-3 * abs(peer["loss"])
            line += (
                f"{peer['seconds']:>11.3f} {peer['megabytes']:>7.0f}   {row['faster']:>6.1f}x {row['smaller']:>7.1f}x"
            )
        else:
            line += f"{'not run':>11} {4 * rows**2 * 4 / 2**20:>6.0f}+"
        print(line, flush=True)
        table.append(row)
    record(
        arguments.json, {"loss": arguments.loss, "table": table, "width": arguments.width, "device": arguments.device}
    )


if __name__ == "__main__":
    main()
