"""What happens to pictures on their way into a shard."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import simplejpeg
from PIL import Image

from viewshards.decode import array_bytes, kind
from viewshards.limits import DEFAULT, Limits
from viewshards.sample import BANDS, Contents, is_picture
from viewshards.views import opencv


@dataclass(frozen=True)
class Encoding:
    """What happens to pictures on their way into a shard.

    Attributes:
        resize: shorter side in pixels that larger pictures are brought to; None keeps the bytes as they are.
        quality: of the JPEG that a resized JPEG becomes, 1 to 100 (other formats become PNG).
        limits: how large what is packed may be; they change no byte of it.
    """

    resize: int | None = None
    quality: int = 92
    limits: Limits = DEFAULT

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize must be at least 1 pixel, got {self.resize}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be between 1 and 100, got {self.quality}")

    def __call__(self, files: dict[str, bytes], labels: tuple[str, ...] = ()) -> dict[str, bytes]:
        """Checks every file as training will, so that nothing broken gets in; resizes pictures if asked to."""
        contents, out = Contents(files, self.limits, labels), {}
        for extension, data in files.items():
            if not is_picture(extension):
                contents.check(extension)
            elif min((value := contents.picture(extension)).shape[:2]) > (self.resize or math.inf):
                extension, data = self._resized(extension, value)
            out[extension] = data
        return out

    def made(self) -> dict[str, Any]:
        """What of it decides about the bytes."""
        return {"resize": self.resize, "quality": self.quality}

    def _resized(self, extension: str, image: Any) -> tuple[str, bytes]:
        assert self.resize is not None
        factor = self.resize / min(image.shape[:2])
        small = opencv.resize(image, round(image.shape[0] * factor), round(image.shape[1] * factor))
        if extension.endswith(BANDS):
            return extension, array_bytes(small)
        if kind(extension) in ("jpg", "jpeg"):
            return extension, simplejpeg.encode_jpeg(small, quality=self.quality, colorsubsampling="420")
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, "PNG")
        return f"{extension.rpartition('.')[0]}.png".removeprefix("."), buffer.getvalue()
