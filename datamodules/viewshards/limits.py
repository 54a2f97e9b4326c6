"""How large anything may be that a file of somebody else holds: stated here, and nowhere else.

A few bytes can ask for any amount of memory: a picture's header, an array's shape, a number in a mask. Each limit is
looked at before the memory is taken. A file beyond one is refused with the option that raises it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches


@dataclass(frozen=True)
class Limits:
    """What is read at most. In training `--data.limits.NAME`, in `viewshards` `--limit NAME=NUMBER`.

    Attributes:
        pixels: of a picture, or of a frame of a clip.
        frames: of a clip.
        array_bytes: of an array, unpacked.
        file_bytes: of one file of a sample.
        json_bytes: of a `.json`. json_depth: how deep lists and objects may lie in each other.
        text_bytes: of a `.txt`.
        classes: above the highest number in a `.cls`.
        trajectories: above the highest number in a `traj.npz`.
        name_bytes: of a member's name in a tar.
        members: of a tar.
    """

    pixels: int = 50_000_000
    frames: int = 100_000
    array_bytes: int = 2**30
    file_bytes: int = 2**31
    json_bytes: int = 2**24
    json_depth: int = 64
    text_bytes: int = 2**20
    classes: int = 1_000_000
    trajectories: int = 100_000
    name_bytes: int = 4_096
    members: int = 10_000_000

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ValueError(f"the limit {each.name} must be at least 1, got {getattr(self, each.name)}")

    def check(self, name: str, found: int, what: str) -> None:
        """Raises ValueError if `found` is more than the limit of this name."""
        if found > getattr(self, name):
            raise ValueError(
                f"{what}: {found:,}, more than the limit of {getattr(self, name):,}; if it is meant, raise it: "
                f"--limit {name}={found}, in training --data.limits.{name} {found}"
            )

    @classmethod
    def of(cls, texts: Iterable[str]) -> Limits:
        """Limits as a command line gives them: `pixels=100000000`.

        Raises:
            ValueError: for another name, or no number.
        """
        known, given = [each.name for each in fields(cls)], {}
        for text in texts:
            name, _, number = text.partition("=")
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"--limit {text}: no limit is called {name!r}; {hint}")
            if not (number.isascii() and number.isdecimal()):
                raise ValueError(f"--limit {text}: expected NAME=NUMBER, such as {name}={getattr(cls(), name)}")
            given[name] = int(number)
        return cls(**given)


DEFAULT = Limits()
