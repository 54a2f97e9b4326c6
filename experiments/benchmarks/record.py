"""Writes a benchmark's numbers with what they were measured on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any


def hardware() -> str:
    """Processor and cores, and the GPU if torch sees one."""
    model = next((l for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")), "")  # noqa: E741
    text = f"{model.partition(':')[2].strip() or platform.processor()}, {len(os.sched_getaffinity(0))} cores"
    import torch

    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def record(path: Path | None, content: dict[str, Any]) -> None:
    """Writes `content` with command, versions, commit and hardware; nothing if no path was given."""
    if path is None:
        return
    from manyviews.runs.folder import provenance

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "hardware": hardware(), **provenance()}, indent=1) + "\n")
    print(f"written: {path}")
