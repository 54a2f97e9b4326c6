"""The names that a mistaken one may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def nearest(given: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names nearest to a given one: with its words, beginning with it, or alike; none if none is near."""
    alike = {name.lower(): name for name in sorted(set(known))}
    name, words = given.lower(), _words(given)
    same = [other for other in alike if words and _words(other) == words]
    same += [other for other in alike if words and set(words) < set(_words(other))]
    begin = [other for other in alike if name and other.startswith(name)]
    close = get_close_matches(name, alike, most, 0.6)
    return [alike[other] for other in dict.fromkeys([*same, *begin, *close])][:most]


def _words(name: str) -> list[str]:
    return sorted(re.findall("[a-z0-9]+", name.lower()))


def meant(given: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean A or B?`, else what there is if that is little, to be put behind an error's first half."""
    known = list(known)
    if near := nearest(given, known):
        return f"; did you mean {' or '.join(prefix + name for name in near)}?"
    return f"; there is {', '.join(sorted(known))}" if 0 < len(known) <= 20 else ""
