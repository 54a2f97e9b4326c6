"""Built-in sets made from what ships: for what a real set cannot show cleanly, such as two factors in one image."""

from __future__ import annotations

import io
import json
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import override

from viewshards.order import generator
from viewshards.sources.bundled import Emoji, Sklearn
from viewshards.sources.source import Source, hashed_split, png


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

    @override
    def files(self, sample: int) -> dict[str, bytes]:
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

    @override
    def files(self, sample: int) -> dict[str, bytes]:
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

    @override
    def files(self, sample: int) -> dict[str, bytes]:
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

    @override
    def files(self, sample: int) -> dict[str, bytes]:
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


Thing = tuple[str, str, str]
"""Size, colour and shape."""


class Shapes(Source):
    """5,200 drawings of 2 or 3 coloured shapes in two sizes, with compositional captions and exact hard captions.

    Things stand side by side or above each other; `captions` say so in several ways, `hard_captions` lists for each of
    them what is said with the same words and wrong: the attributes of two things swapped, their places swapped, the
    words shuffled. `cases` has the first caption again with its false versions by kind, for composition tests. `cls`:
    the shape of the first thing; `colour`: its colour.

    Splits: `train`; `val`, 100 things in combinations that training never shows (no two captions alike); `seen`, 100
    in combinations it does; `composition`, 1,000 unseen ones.
    """

    name = "shapes"
    colours: ClassVar[dict[str, tuple[int, int, int]]] = {
        "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 220), "yellow": (240, 200, 20),
        "purple": (148, 60, 190),
    }  # fmt: skip
    kinds = ("circle", "square", "triangle", "star")
    sizes = ("small", "large")

    def __init__(self, side: int = 48) -> None:
        self.side = side
        self.labels = {"cls": list(self.kinds), "colour": list(self.colours)}
        rng = generator(2024, 13)
        wanted = {"train": 4000, "val": 100, "seen": 100, "composition": 1000}
        self.samples, self.scenes = [], []
        for split, count in wanted.items():
            shown: set[str] = set()
            while count:
                scene = self._scene(rng)
                caption = self._captions(*scene)[0]
                if self._held_out(scene[0]) != (split in ("val", "composition")) or caption in shown:
                    continue
                if split in ("val", "seen"):  # each caption has one right image
                    shown.add(caption)
                self.samples.append((f"{split}-{len(self.samples):05d}", split))
                self.scenes.append(scene)
                count -= 1

    def _scene(self, rng: np.random.Generator) -> tuple[list[Thing], bool]:
        """(size, colour, shape) of each thing, no two of one colour and shape; whether they stand side by side."""
        count = 2 if rng.random() < 0.7 else 3
        chosen = rng.permutation(len(self.colours) * len(self.kinds))[:count].tolist()
        names = [(list(self.colours)[c // len(self.kinds)], self.kinds[c % len(self.kinds)]) for c in chosen]
        things = [(self.sizes[int(rng.integers(2))], *name) for name in names]
        return things, bool(count == 3 or rng.random() < 0.5)

    @staticmethod
    def _held_out(things: list[Thing]) -> bool:
        """A fifth of the ordered combinations of the first two things, by a hash."""
        return hashed_split(" ".join(word for thing in things[:2] for word in thing[1:]), 0.2) == "val"

    @staticmethod
    def _captions(things: list[Thing], beside: bool) -> list[str]:
        said = ["a " + " ".join(thing) for thing in things]
        if len(said) == 3:
            return [
                f"{said[0]}, {said[1]} and {said[2]} from left to right",
                f"{said[2]}, {said[1]} and {said[0]} from right to left",
            ]
        before, after = ("left of", "right of") if beside else ("above", "below")
        return [f"{said[0]} {before} {said[1]}", f"{said[1]} {after} {said[0]}"]

    def _false(self, things: list[Thing], beside: bool, way: int, rng: np.random.Generator) -> dict[str, str]:
        """Caption number `way`, wrong, by kind; without those that would be true."""
        first, second, *rest = things
        swapped = [(first[0], second[1], first[2]), (second[0], first[1], second[2]), *rest]
        shuffled = rng.permutation(self._captions(things, beside)[way].split()).tolist()
        versions = {
            "attribute": self._captions(swapped, beside)[way],
            "relation": self._captions(things[::-1], beside)[way],
            "order": " ".join(shuffled),
        }
        true = self._captions(things, beside)
        return {kind: text for kind, text in versions.items() if text not in true}

    @override
    def files(self, sample: int) -> dict[str, bytes]:
        things, beside = self.scenes[sample]
        rng = generator(2024, 17, sample)
        image = np.full((self.side * 4, self.side * 4, 3), int(rng.integers(200, 256)), np.uint8)
        step = image.shape[0] / len(things)
        for place, (size, colour, kind) in enumerate(things):
            radius = step * (0.24 if size == "small" else 0.44)
            along, across = (place + 0.5) * step, image.shape[0] / 2 + rng.normal(0, 0.06) * image.shape[0]
            centre = np.array([along, across] if beside else [across, along])
            self._draw(image, kind, centre, radius, self.colours[colour], rng)
        captions = self._captions(things, beside)
        false = [self._false(things, beside, way, rng) for way in range(len(captions))]
        about = {
            "captions": captions,
            "hard_captions": [list(versions.values()) for versions in false],
            "cases": {"true": captions[0], **false[0]},
            "colour": things[0][1],
        }
        return {
            "png": png(Image.fromarray(cv2.resize(image, (self.side, self.side), interpolation=cv2.INTER_AREA))),
            "cls": str(self.kinds.index(things[0][2])).encode(),
            "txt": captions[0].encode(),
            "json": json.dumps(about).encode(),
        }

    @staticmethod
    def _draw(
        image: NDArray[np.uint8],
        kind: str,
        centre: NDArray[np.float64],
        radius: float,
        colour: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> None:
        if kind == "circle":
            cv2.circle(image, tuple(np.rint(centre).astype(int).tolist()), round(radius), colour, -1)
            return
        corners = {"square": 4, "triangle": 3, "star": 10}[kind]
        angle = np.arange(corners) * 2 * np.pi / corners + (np.pi / 4 if kind == "square" else -np.pi / 2)
        angle += rng.normal(0, 0.08)
        reach = radius * np.where(np.arange(corners) % 2, 0.42 if kind == "star" else 1.0, 1.0)
        points = centre + np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]
        cv2.fillPoly(image, [np.rint(points).astype(np.int32)], colour)


SETS = (PastedDigits, SalientDigits, LongTailDigits, Hands, Volumes, Shapes)
"""What `builtin:NAME` knows beside the shipped sets."""
