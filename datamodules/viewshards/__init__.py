"""Views from plain WebDataset shards: indexed, ordered by a pure function, exactly resumable."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viewshards.datamodule import ShardDataModule
    from viewshards.shards import ShardSet
    from viewshards.text import Captions, TextAugmentation

__all__ = ["Captions", "ShardDataModule", "ShardSet", "TextAugmentation"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; `viewshards --help` and the index need none of it.
    if name == "ShardDataModule":
        from viewshards.datamodule import ShardDataModule

        return ShardDataModule
    if name == "ShardSet":
        from viewshards.shards import ShardSet

        return ShardSet
    if name in ("Captions", "TextAugmentation"):
        from viewshards import text

        return getattr(text, name)
    raise AttributeError(f"module 'viewshards' has no attribute {name!r}")
