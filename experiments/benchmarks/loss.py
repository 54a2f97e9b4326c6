"""NT-Xent, forward and backward, against lightly's NTXentLoss in the same run: CPU time and peak memory.

    python experiments/benchmarks/loss.py [--rows 1024 ... 32768] [--json experiments/results/loss.json]

Each cell runs in a process of its own (peak memory is a process's), one thread; the time is the process's CPU time,
the best of `repeats`, interleaved. Rows are rows of the similarity matrix (2 views). lightly holds several N x N
matrices: cells that would need more than --memory-gb are not run. On a GPU (--device cuda) time is by CUDA events.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from record import record


def cell(name: str, rows: int, width: int, device: str) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    if name == "lightly":
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(temperature=0.1)
    else:
        from manyviews.objectives import NTXent

        objective = NTXent(0.1)
        loss = lambda a, b: objective([a, b])  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(rows // 2, width, generator=generator).to(device).requires_grad_() for _ in range(2)]
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
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cell", nargs=2, metavar=("NAME", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(cell(arguments.cell[0], int(arguments.cell[1]), arguments.width, arguments.device)))
        return
    table = []
    print(f"{'rows':>6} {'ours s':>9} {'MB':>7} {'lightly s':>10} {'MB':>7}   {'faster':>7} {'smaller':>8}")
    for rows in arguments.rows:
        best: dict[str, dict[str, float]] = {}
        for _ in range(arguments.repeats):
            for name in ("ours", "lightly"):
                if name == "lightly" and 4 * rows**2 * 4 / 2**30 > arguments.memory_gb:
                    continue
                command = [sys.executable, __file__, "--cell", name, str(rows), "--device", arguments.device]
                command += ["--width", str(arguments.width)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    best[name] = found
        ours, peer = best["ours"], best.get("lightly")
        row = {"rows": rows, "ours": ours, "lightly": peer}
        line = f"{rows:>6} {ours['seconds']:>9.3f} {ours['megabytes']:>7.0f} "
        if peer:
            row |= {"faster": peer["seconds"] / ours["seconds"], "smaller": peer["megabytes"] / ours["megabytes"]}
            assert abs(peer["loss"] - ours["loss"]) < 1e-3 * abs(peer["loss"])
            line += (
                f"{peer['seconds']:>10.3f} {peer['megabytes']:>7.0f}   {row['faster']:>6.1f}x {row['smaller']:>7.1f}x"
            )
        else:
            line += f"{'not run':>10} {4 * rows**2 * 4 / 2**20:>6.0f}+"
        print(line, flush=True)
        table.append(row)
    record(arguments.json, {"table": table, "width": arguments.width, "device": arguments.device})


if __name__ == "__main__":
    main()
