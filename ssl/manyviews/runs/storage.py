"""Checkpoint files: whole or absent, with size and checksum beside them."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames, syncs the folder: a failed save leaves the old file and no litter.

    Beside `step-N.ckpt` goes `step-N.ckpt.sha256`, its size and checksum, which `sha256sum -c` reads too.
    Lightning's own stages the file in `$TMPDIR` and copies it over, so that a full disk leaves a torn `last.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint dict at `path`.

        Raises:
            OSError: if the disk has no room for it, before anything is written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        needed, free = size_of(checkpoint), shutil.disk_usage(target.parent).free
        if free < needed:
            raise OSError(
                errno.ENOSPC, f"no room: the checkpoint takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )
        part = _part(target)
        try:
            with _Hashed(part) as f:
                torch.save(checkpoint, f)
                f.flush()
                os.fsync(f.fileno())
                size = f.tell()
            _place(part, target, size, f.sha256.hexdigest())
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain types only: a checkpoint cannot run code."""
        return load(path)


class _Hashed(io.BufferedWriter):
    """A file hashed while it is written: no second pass over a large checkpoint."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return super().write(data)


def sidecar(path: Path) -> Path:
    """Where a checkpoint's size and checksum are kept."""
    return path.with_name(f"{path.name}.sha256")


def alias(path: Path, name: Path) -> None:
    """A second name for a saved checkpoint, which stays when the first is removed."""
    part = _part(name)
    try:
        part.unlink(missing_ok=True)
        os.link(path, part)
        size, digest = _recorded(path) or (path.stat().st_size, sha256_of(path))
        _place(part, name, size, digest)
    finally:
        part.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a checkpoint and, before it, what is kept beside it."""
    sidecar(path).unlink(missing_ok=True)
    path.unlink()


def size_of(content: Any) -> int:
    """Bytes of all tensors in nested dicts and lists, each storage once."""
    storages: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for child in value.values():
                walk(child)
        elif isinstance(value, list | tuple):
            for child in value:
                walk(child)

    walk(content)
    return sum(storages.values())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint on the CPU, tensors and plain types only.

    Raises:
        ValueError: if it is not whole, saying why.
        FileNotFoundError: if it is not there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if damage := damage_of(path):
        raise ValueError(f"{path}: not a whole checkpoint ({damage})")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a checkpoint of tensors and plain types ({reason})") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None: nothing.

    It is held against its sidecar. One that came without is held against its own checksums: torch's format is a zip.
    """
    if not path.is_file():
        return "not a file"
    try:
        recorded = _recorded(path)
        if recorded is None:
            return _damage_of_unsealed(path)
        size, digest = recorded
        if path.stat().st_size != size:
            return f"{path.stat().st_size:,} bytes, {sidecar(path).name} says {size:,}"
        with zipfile.ZipFile(path) as z:
            if _is_compressed(z):
                return COMPRESSED
        return None if sha256_of(path) == digest else f"it does not match {sidecar(path).name}"
    except Exception as error:  # damaged bytes make the unpacking libraries fail in any way
        return f"cut or damaged: {' '.join(str(error).split()) or type(error).__name__}"


COMPRESSED = "it holds compressed parts, which torch does not write"


def _is_compressed(z: zipfile.ZipFile) -> bool:
    return any(part.compress_type != zipfile.ZIP_STORED for part in z.infolist())


def _damage_of_unsealed(path: Path) -> str | None:
    with zipfile.ZipFile(path) as z:
        if _is_compressed(z):
            return COMPRESSED
        broken = z.testzip()
    if broken is not None:
        return f"its part {broken} does not match its checksum"
    try:
        found = torch.load(path, mmap=True, map_location="cpu", weights_only=True)  # reads no weights yet
    except pickle.UnpicklingError as error:
        return (
            f"it holds more than tensors and plain types, and loading it could run code: {str(error).splitlines()[0]}"
        )
    return None if isinstance(found, dict) else f"it holds a {type(found).__name__}, not the parts of a checkpoint"


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of a folder's checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    return sorted(found)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are passed over with a warning."""
    for _, path in reversed(saved_steps(folder)):
        damage = damage_of(path)
        if damage is None:
            return path
        logger.warning("%s is not whole (%s): falling back to the one before", path, damage)
    return None


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def _place(part: Path, target: Path, size: int, digest: str) -> None:
    """Puts a synced file and its sidecar in place; whatever needs room on the disk comes before the first rename."""
    seal, seal_part = sidecar(target), _part(sidecar(target))
    try:
        with open(seal_part, "w") as f:
            f.write(f"# {size} bytes\n{digest}  {target.name}\n")
            f.flush()
            os.fsync(f.fileno())
        # Killed from here on: a checkpoint without a sidecar, never one beside another's.
        seal.unlink(missing_ok=True)
        part.replace(target)
        seal_part.replace(seal)
    finally:
        seal_part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _recorded(path: Path) -> tuple[int, str] | None:
    """Size and checksum of the sidecar; None without one.

    Raises:
        ValueError: if the sidecar itself is damaged.
    """
    seal = sidecar(path)
    if not seal.exists():
        return None
    if not seal.is_file() or seal.stat().st_size > 4096:
        raise ValueError(f"{seal.name} is no sidecar")
    match = re.fullmatch(r"# (\d+) bytes\n([0-9a-f]{64})  .+\n", seal.read_bytes().decode(errors="replace"))
    if match is None:
        raise ValueError(f"{seal.name} is damaged; without it the checkpoint is held against its own checksums")
    return int(match[1]), match[2]


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
