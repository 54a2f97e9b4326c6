"""Built-in sets made from what ships: for what a real set cannot show cleanly, such as two factors in one image."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from viewshards.order import generator
from viewshards.sources import Emoji, Sklearn, Source, hashed_split, png


class PastedDigits(Source):
    """1,905 emoji, each with a handwritten digit in a corner: two labels, group and digit, that are independent.

    Two views by nature: the two vendors' drawings with the same digit image, in corners of their own. A learner that
    tells samples apart by one of the two factors can leave the other out (feature suppression).

    Args:
        share: of the samples that have a digit; `target` (also `cls`) is 1 for them and 0 for the others.
    """

    name = "pasted"

    def __init__(self, share: float = 1.0) -> None:
        self.emoji, self.digits, self.share = Emoji(), Sklearn("digits"), share
        self.samples = self.emoji.samples
        digits = [str(d) for d in range(10)]
        self.labels = {"cls": ["background", "target"], "group": self.emoji.labels["group"], "digit": digits}
        # Digits of the same split only: a val sample shows nothing that training saw.
        self._of_split = {
            split: [i for i, (_, s) in enumerate(self.digits.samples) if s == split] for split in ("train", "val")
        }

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        rng = generator(2024, sample)
        files = self.emoji.files(sample)
        about = json.loads(files["json"])
        target = bool(rng.random() < self.share)
        pool = self._of_split["val" if self.samples[sample][1] == "val" else "train"]
        chosen = int(pool[rng.integers(len(pool))])
        for view in ("google", "twitter"):
            image = np.array(Image.open(io.BytesIO(files.pop(f"{view}.webp"))).convert("RGB"))
            if target:
                self._paste(image, self.digits.images[chosen], rng)
            files[f"{view}.png"] = png(Image.fromarray(image))
        digit = str(self.digits.targets[chosen]) if target else None
        files["cls"] = str(int(target)).encode()
        files["json"] = json.dumps({**about, "digit": digit, "target": int(target)}, ensure_ascii=False).encode()
        return files

    @staticmethod
    def _paste(image: NDArray[np.uint8], digit: NDArray[np.uint8], rng: np.random.Generator) -> None:
        """White on black, 12 of 32 px, in one of the corners."""
        side = image.shape[0] * 12 // 32
        patch = cv2.resize(digit, (side, side), interpolation=cv2.INTER_LINEAR)
        y, x = (int(c) * (image.shape[0] - side) for c in rng.integers(0, 2, 2))
        image[y : y + side, x : x + side] = patch[..., None]


class SalientDigits(PastedDigits):
    """The same emoji, half of them with a digit: background and target images for contrastive analysis (SepCLR)."""

    name = "salient"

    def __init__(self) -> None:
        super().__init__(share=0.5)


class LongTailDigits(Source):
    """scikit-learn's digits with a long tail in train: class c keeps a share of 0.6^c; val stays even."""

    name = "longtail"

    def __init__(self, decay: float = 0.6) -> None:
        digits = Sklearn("digits")
        self.labels = digits.labels
        rng = generator(2024)
        keep = rng.random(len(digits.samples))
        self._digits = digits
        self._kept = [
            i for i, (_, split) in enumerate(digits.samples) if split == "val" or keep[i] < decay ** digits.targets[i]
        ]
        self.samples = [digits.samples[i] for i in self._kept]

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        return self._digits.files(self._kept[sample])


class Hands(Source):
    """2,000 drawn hands of five fingers, each with a partner of similar pose: 2-D joints of both (SiMHand).

    Natural views `anchor` and `partner`: another hand, the nearest by its joints among 200. `joints` (2, 11, 2) in
    shares of the side: the palm, and middle and tip of each finger. `cls`: how many fingers are stretched.

    Args:
        samples: how many.
    """

    name = "hands"

    def __init__(self, samples: int = 2000) -> None:
        rng = generator(2024, 7)
        self._bent = rng.random((samples, 5)) < 0.5
        self._joints = np.stack([self._pose(bent, rng) for bent in self._bent])
        self._colours = rng.integers(0, 200, (samples, 2, 3))
        self.samples = [(f"{i:06d}", hashed_split(f"{i:06d}", 0.2)) for i in range(samples)]
        self.labels = {"cls": [f"{n} fingers" for n in range(6)]}
        splits = np.array([split for _, split in self.samples])
        self._partner = []
        for i in range(samples):
            others = rng.permutation(np.flatnonzero(splits == splits[i]))[:200]
            distance = np.linalg.norm(self._joints[others] - self._joints[i], axis=2).mean(1)
            distance[others == i] = np.inf
            self._partner.append(int(others[distance.argmin()]))

    @staticmethod
    def _pose(bent: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
        """(11, 2) joints, x and y in [0, 1]."""
        palm = np.array([0.5, 0.7]) + rng.normal(0, 0.03, 2)
        turn = rng.normal(0, 0.25)
        joints = [palm]
        for finger, is_bent in enumerate(bent):
            angle = turn + (finger - 2) * 0.4 + rng.normal(0, 0.05)
            ahead = np.array([np.sin(angle), -np.cos(angle)])
            middle = palm + 0.25 * ahead
            joints += [middle, middle - 0.1 * ahead if is_bent else middle + 0.2 * ahead]
        return np.clip(np.stack(joints), 0.02, 0.98)

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        partner = self._partner[sample]
        joints = [self._joints[i].round(4).tolist() for i in (sample, partner)]
        return {
            "anchor.png": self._drawn(sample),
            "partner.png": self._drawn(partner),
            "cls": str(int((~self._bent[sample]).sum())).encode(),
            "json": json.dumps({"joints": joints}).encode(),
        }

    def _drawn(self, sample: int, side: int = 32) -> bytes:
        skin, ground = (tuple(int(v) for v in colour) for colour in self._colours[sample])
        image = np.full((side * 4, side * 4, 3), 255, np.uint8)
        image[:] = [255 - v // 4 for v in ground]
        points = (self._joints[sample] * side * 4).astype(int)
        cv2.circle(image, tuple(points[0].tolist()), side // 2, skin, -1)
        for middle, tip in zip(points[1::2], points[2::2], strict=True):
            cv2.line(image, tuple(points[0].tolist()), tuple(middle.tolist()), skin, side // 4)
            cv2.line(image, tuple(middle.tolist()), tuple(tip.tolist()), skin, side // 5)
        return png(Image.fromarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)))


class Volumes(Source):
    """600 solids of six kinds, turned and scaled, cut into 8 grey slices each: volumes for slice-wise methods.

    Natural views `00` to `07`: the slices in order, 32 px. `cls`: the kind.

    Args:
        samples: how many. slices: of each.
    """

    name = "volumes"
    kinds = ("ball", "box", "cylinder", "cone", "ring", "cross")

    def __init__(self, samples: int = 600, slices: int = 8) -> None:
        self.samples = [(f"{i:06d}", hashed_split(f"{i:06d}", 0.2)) for i in range(samples)]
        self.labels = {"cls": list(self.kinds)}
        self.slices = slices

    def files(self, sample: int) -> dict[str, bytes]:  # noqa: D102
        rng = generator(2024, 11, sample)
        kind = sample % len(self.kinds)
        x, y, z = (2 * g for g in self._grid(rng) / rng.uniform(0.7, 1.0))
        inside = {
            "ball": lambda: x**2 + y**2 + z**2 < 1,
            "box": lambda: np.maximum.reduce([abs(x), abs(y), abs(z)]) < 0.75,
            "cylinder": lambda: (x**2 + y**2 < 0.5) & (abs(z) < 0.9),
            "cone": lambda: (np.hypot(x, y) < 0.45 * (0.9 - z)) & (abs(z) < 0.9),
            "ring": lambda: (np.hypot(x, y) - 0.65) ** 2 + z**2 < 0.09,
            "cross": lambda: np.sort(np.stack([abs(x), abs(y), abs(z)]), 0)[1] < 0.3,
        }[self.kinds[kind]]() & (np.maximum.reduce([abs(x), abs(y), abs(z)]) < 1)
        level, noise = rng.uniform(90, 160), rng.normal(0, 12, inside.shape)
        grey = np.clip(40 + level * inside + noise, 0, 255).astype(np.uint8)
        files = {f"{s:02d}.png": png(Image.fromarray(part)) for s, part in enumerate(grey)}
        return {**files, "cls": str(kind).encode()}

    def _grid(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """(3, slices, 32, 32): places in [-0.5, 0.5], randomly turned and shifted."""
        z, y, x = np.meshgrid(
            np.linspace(-0.5, 0.5, self.slices), np.linspace(-0.5, 0.5, 32), np.linspace(-0.5, 0.5, 32), indexing="ij"
        )
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned: NDArray[np.float64] = np.einsum("ij,jabc->iabc", turn, np.stack([x, y, z]))
        return turned + rng.normal(0, 0.04, (3, 1, 1, 1))


SETS = (PastedDigits, SalientDigits, LongTailDigits, Hands, Volumes)
"""What `builtin:NAME` knows beside the shipped sets."""
