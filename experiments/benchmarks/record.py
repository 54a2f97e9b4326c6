"""Writes a benchmark's numbers with what they were measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def record(path: Path | None, content: dict[str, Any]) -> None:
    """Writes `content` with command, versions, commit and hardware; nothing if no path was given."""
    if path is None:
        return
    from manyviews.runs.folder import provenance  # brings torch, which the measuring parent process does without

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **provenance()}, indent=1) + "\n")
    print(f"written: {path}")
