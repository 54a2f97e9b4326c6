"""A fixed wavelet scattering transform (Bruna and Mallat, 2013) and a small network on it (ScatSimCLR)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manyviews.backbones.encoding import Encoding


class Scattering(nn.Module):
    """Averaged moduli of Morlet wavelets, of order 0, 1 and 2; nothing is trained.

    Each channel gives L^2 J (J-1) / 2 + L J + 1 maps, 2^J times smaller than the image.

    Args:
        size: side of the square images, a multiple of 2^J.
        scales: J. angles: L.
    """

    wavelets: Tensor
    low_pass: Tensor

    def __init__(self, size: int, scales: int = 2, angles: int = 16) -> None:
        super().__init__()
        if size % 2**scales:
            raise ValueError(f"size must be a multiple of 2^scales = {2**scales}, got {size}")
        self.scales, self.angles = scales, angles
        self.maps = angles**2 * scales * (scales - 1) // 2 + angles * scales + 1
        places = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
        y, x = torch.meshgrid(places, places, indexing="ij")
        wavelets = torch.stack(
            [
                morlet(x, y, 2.0**j, math.pi * angle / angles, 4 / angles)
                for j in range(scales)
                for angle in range(angles)
            ]
        )
        low = torch.exp(-(x**2 + y**2) / (2 * (0.8 * 2 ** (scales - 1)) ** 2))
        self.register_buffer("wavelets", torch.fft.fft2(wavelets).real.float(), persistent=False)
        self.register_buffer("low_pass", torch.fft.fft2(low / low.sum()).real.float(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * maps, H / 2^J, W / 2^J), float32."""
        with torch.autocast(images.device.type, enabled=False):
            spectrum = torch.fft.fft2(images.float())
            maps = [self._average(spectrum)[:, :, None]]
            first = [self._modulus(spectrum, j) for j in range(self.scales)]
            maps += [self._average(torch.fft.fft2(u)) for u in first]
            for j, u in enumerate(first):
                inner = torch.fft.fft2(u)
                for k in range(j + 1, self.scales):
                    second = self._modulus(inner, k)  # (B, C, L, L, H, W)
                    maps.append(self._average(torch.fft.fft2(second)).flatten(2, 3))
            return torch.cat(maps, 2).flatten(1, 2)

    def _modulus(self, spectrum: Tensor, scale: int) -> Tensor:
        """(..., H, W) to (..., L, H, W): the moduli at one scale, all angles."""
        bank = self.wavelets[scale * self.angles : (scale + 1) * self.angles]
        modulus: Tensor = torch.fft.ifft2(spectrum[..., None, :, :] * bank).abs()
        return modulus

    def _average(self, spectrum: Tensor) -> Tensor:
        step = 2**self.scales
        average: Tensor = torch.fft.ifft2(spectrum * self.low_pass).real[..., ::step, ::step]
        return average


def morlet(x: Tensor, y: Tensor, scale: float, angle: float, slant: float) -> Tensor:
    """A complex Morlet wavelet of mean 0 at places x, y: deviation 0.8 and frequency 3 pi / 4 at scale 1."""
    u = math.cos(angle) * x + math.sin(angle) * y
    v = -math.sin(angle) * x + math.cos(angle) * y
    envelope = torch.exp(-(u**2 + (slant * v) ** 2) / (2 * (0.8 * scale) ** 2))
    wave = envelope * torch.exp(1j * (3 * math.pi / 4 / scale) * u)
    wave = wave - envelope * (wave.sum() / envelope.sum())
    return wave * slant / (2 * math.pi * (0.8 * scale) ** 2)


class ScatteringBackbone(nn.Module):
    """A scattering front end, BatchNorm over its maps, and a small trained residual network.

    The maps differ in size by orders of magnitude; the authors build the BatchNorm but do not apply it. We do.

    Args:
        size: side of the images. scales, angles: of the scattering.
        hidden: channels of the network. blocks: residual blocks. width: D of the pooled features.
    """

    def __init__(
        self, size: int, scales: int = 2, angles: int = 16, hidden: int = 256, blocks: int = 2, width: int = 2048
    ) -> None:
        super().__init__()
        self.scattering = Scattering(size, scales, angles)
        channels = 3 * self.scattering.maps
        self.norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
                nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.last = nn.Sequential(nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, width, 1))
        self.width = width

    def forward(self, images: Tensor) -> Encoding:
        """(B, 3, size, size) normalised floats to an Encoding with one token a place."""
        x = self.first(self.norm(self.scattering(images)))
        for block in self.blocks:
            x = x + block(x)
        tokens = self.last(x).flatten(2).transpose(1, 2)
        return Encoding(tokens.mean(1), tokens)
