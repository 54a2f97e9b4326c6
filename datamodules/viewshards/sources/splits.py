"""Which folder, name or word is which split: the usual ones are known, doubt is a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from viewshards.account import Question

WORDS = {"train": "training|train|trn", "val": "validation|valid|val|dev", "test": "testing|test|evaluation|eval"}
NAMED = {
    split: re.compile(rf"(?:{words})(?:[-_. ]?(?:set|split|data|images?))?(?:[-_. ]?\d+)?", re.IGNORECASE)
    for split, words in WORDS.items()
}
BEGUN = re.compile(rf"(?i:{'|'.join(WORDS.values())})(?![a-z])")
NAME = re.compile(r"[\w-]+")
"""What a split may be called."""
SHORT = frozenset({"tr", "va", "te", "ts", "tst"})
PLAIN = frozenset(
    ["image", "images", "imgs", "pictures", "photos", "jpegimages", "jpegs", "frames", "data", "all", "files"]
)
"""Folders that say what is in them, and no class."""
IN_NAME = re.compile(rf"(?:^|[-_. ])({'|'.join(WORDS.values())})(?:20\d\d)?(?=[-_. \d]|$)", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` if this is a usual name of one: `Training`, `valid`, `dev`, `val2017`, `test_set`."""
    return next((split for split, pattern in NAMED.items() if pattern.fullmatch(name)), None)


def split_in(name: str) -> str | None:
    """The split that a word in a file's name says: `imagenet-Validation-0001`.

    Raises:
        ValueError: if there are words of two.
    """
    found = {split_of(word) for word in IN_NAME.findall(name)} - {None}
    if len(found) > 1:
        raise ValueError(
            f"{name!r} names several splits: {', '.join(sorted(filter(None, found)))}; say which: --splits"
        )
    return found.pop() if found else None


@dataclass(frozen=True)
class Splits:
    """What a user says of splits: `train=Training,val=Valid`, or `none`.

    Attributes:
        names: (split, folder or value of a column) in the order given; None: nothing is said, the usual names hold.
    """

    names: tuple[tuple[str, str], ...] | None = None

    @classmethod
    def parsed(cls, text: str | None) -> Splits:
        """Of the option's text.

        Raises:
            ValueError: if it is of another form.
        """
        if text is None or text.lower() == "none":
            return cls(None if text is None else ())
        names = []
        for part in text.split(","):
            split, equals, name = part.partition("=")
            if not equals or not name.strip() or not NAME.fullmatch(split.strip()):
                raise ValueError(f"--splits {text}: expected none, or SPLIT=NAME,... such as train=Training,val=Valid")
            split = split.strip()
            names.append((split_of(split) or split, name.strip("/").removeprefix("./")))
        if len({name for _, name in names}) < len(names):
            raise ValueError(f"--splits {text}: one name for two splits")
        return cls(tuple(names))

    def of_value(self, value: str) -> str | None:
        """The split that a value of a table's column says; None if it says none."""
        if self.names is None:
            return split_of(value) or value
        return next((split for split, name in self.names if name == value), None)


@dataclass(frozen=True)
class Place:
    """Where in a layout a file lies: its split and class, if it has any, and its name without them."""

    split: str | None
    label: str | None
    rest: str


@dataclass
class Layout:
    """The places of files, by name; those that lie in none; and what was understood."""

    places: dict[str, Place] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Folders:
    """What lies directly in each folder: folders and files, in the order of the files' names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._below: dict[str, tuple[dict[str, None], list[str]]] = {"": ({}, [])}
        for name in names:
            folder = name[: name.rfind("/") + 1]
            if folder not in self._below:
                parts = folder.split("/")[:-1]
                for depth, part in enumerate(parts):
                    above = "".join(f"{each}/" for each in parts[:depth])
                    self._below.setdefault(above, ({}, []))[0][part] = None
                self._below.setdefault(folder, ({}, []))
            self._below[folder][1].append(name)

    def of(self, folder: str) -> tuple[list[str], list[str]]:
        """Folders and files directly in a folder, which ends in a slash or is empty."""
        folders, files = self._below.get(folder, ({}, []))
        return list(folders), files


def layout(root: object, names: Sequence[str], splits: Splits = Splits()) -> Layout:
    """Splits and classes of files by the folders they lie in: `[SPLIT/][CLASS/]**/FILE`, or `CLASS/SPLIT/**/FILE`.

    Args:
        root: for messages. names: of the files below it. splits: what the user says of them.

    Raises:
        ValueError: a question, if the folders can be understood in several ways.
    """
    if splits.names is not None:
        return _told(root, names, splits.names)
    folders = Folders(names)
    base, (tops, loose) = "", folders.of("")
    while len(tops) == 1 and not loose and not split_of(tops[0]):  # one folder around all others is no class
        base += f"{tops[0]}/"
        tops, loose = folders.of(base)
    if not any(map(split_of, tops)) and len(tops) < 2:
        base, (tops, loose) = "", folders.of("")
    known = {top: split for split in WORDS for top in tops if split_of(top) == split}
    if known:
        found = _under_splits(root, names, folders, base, known)
        notes = [f"the splits lie below {base!r}"] if base else []
    else:
        inner = {top: folders.of(f"{base}{top}/") for top in tops}
        with_splits = [top for top, (below, _) in inner.items() if any(map(split_of, below))]
        if with_splits:
            found = _under_classes(root, names, base, inner, with_splits, loose)
        else:
            _ask_about_words(root, base, tops)
            found = _below(base, _told(root, [name.removeprefix(base) for name in names], ()))
        notes = [f"the classes lie below {base!r}"] if base else []
    found.notes += notes
    odd = next((name for name, place in found.places.items() if any(map(split_of, _inner(place)))), None)
    if odd:
        raise Question(
            f"{root}: {odd} lies in a folder that is called like a split, below what is taken for a class. Say "
            f"--splits none if it is no split, or name the splits: --splits train=FOLDER,val=FOLDER"
        )
    return _classes(found)


def _inner(place: Place) -> list[str]:
    """Folders of a file below its class."""
    return place.rest.split("/")[1:-1] if place.label is not None else []


def _classes(found: Layout) -> Layout:
    """One folder in every split is no class: it says what is in it, or the classes lie below it."""
    labels = {place.label for place in found.places.values()}
    if not any(place.split for place in found.places.values()) or len(labels) != 1 or None in labels:
        return found
    (label,) = labels
    assert label is not None
    places = {}
    for name, place in found.places.items():
        rest = place.rest.removeprefix(f"{label}/")
        top, slash, _ = rest.partition("/")
        places[name] = Place(place.split, top if slash else None, rest)
    if all(place.label for place in places.values()):
        return Layout(places, found.left_out, [*found.notes, f"the classes lie below {label!r}"])
    if label.lower() in PLAIN and not any(place.label for place in places.values()):
        return Layout(
            places, found.left_out, [*found.notes, f"the folder {label!r} of every split is taken for no class"]
        )
    return found


def _below(base: str, found: Layout) -> Layout:
    places = {f"{base}{name}": place for name, place in found.places.items()}
    return Layout(places, {f"{base}{name}": why for name, why in found.left_out.items()}, found.notes)


def _ask_about_words(root: object, base: str, tops: list[str]) -> None:
    """Raises Question if names of folders hold words of splits, but are none of the usual names."""
    words = {
        top: {split_of(word) for word in [*IN_NAME.findall(top), *(m[0] for m in [BEGUN.match(top)] if m)]}
        for top in tops
    }
    found = {split for each in words.values() for split in each} - {None}
    if len(found) > 1 or (len(tops) > 1 and {top.lower() for top in tops} <= SHORT):
        named = [(next(iter(words[top] - {None}), None), top) for top in tops if words[top]]
        said = [f"{split}={base}{top}" for each in WORDS for split, top in named if split == each]
        raise Question(
            f"{root}: are {_listed(tops)} splits or classes? Say --splits none for classes, or name the splits: "
            f"--splits {','.join(said[:3]) or f'train={base}{tops[0]}'}"
        )


def _told(root: object, names: Sequence[str], given: tuple[tuple[str, str], ...]) -> Layout:
    """By the folders that were named; without any of them, classes only."""
    found, used = Layout(), set()
    folders = sorted(((f"{folder}/", split) for split, folder in given), key=lambda each: -len(each[0]))
    for name in names:
        inside = next(((folder, split) for folder, split in folders if name.startswith(folder)), ("", None))
        if given and inside[1] is None:
            found.left_out[name] = "in no folder that --splits names"
            continue
        used.add(inside[0])
        rest = name.removeprefix(inside[0])
        top, slash, _ = rest.partition("/")
        found.places[name] = Place(inside[1], top if slash else None, rest)
    unused = [folder.rstrip("/") for folder, _ in folders if folder not in used]
    if unused:
        there = Folders(names).of("")[0]
        raise ValueError(
            f"{root}: nothing to pack in {', '.join(unused)}, which --splits names; it has {_listed(there)}"
        )
    return found


def _under_splits(root: object, names: Sequence[str], folders: Folders, base: str, known: dict[str, str]) -> Layout:
    tops, loose = folders.of(base)
    said = ",".join(f"{split}={base}{top}" for top, split in known.items())
    beside = [*(f"{top}/" for top in tops if top not in known), *loose]
    if beside:
        raise Question(
            f"{root}: {_listed(beside)} beside the splits {_listed(list(known))}: are these splits or classes? "
            f"--splits {said} packs the splits only; --splits none takes every folder for a class"
        )
    doubled = [split for split in known.values() if list(known.values()).count(split) > 1]
    if doubled:
        raise Question(
            f"{root}: {_listed([top for top in known if known[top] == doubled[0]])} both mean {doubled[0]}: say which "
            f"by --splits, such as --splits {said} for all of them"
        )
    for top in known:
        below, _ = folders.of(f"{base}{top}/")
        like = [folder for folder in below if split_of(folder)]
        if like:
            raise Question(
                f"{root}: below {base}{top} lie folders that are called like splits ({_listed(like)}). If they are "
                f"classes: --splits {said}; if they are the splits: --splits {split_of(like[0])}={base}{top}/{like[0]} "
                "and so on"
            )
    return _told(root, names, tuple((split, f"{base}{top}") for top, split in known.items()))


def _under_classes(
    root: object,
    names: Sequence[str],
    base: str,
    inner: dict[str, tuple[list[str], list[str]]],
    with_splits: list[str],
    loose: list[str],
) -> Layout:
    """CLASS/SPLIT/FILE: understood where every class has splits and nothing beside them."""
    odd = [top for top, (folders, files) in inner.items() if files or not all(map(split_of, folders))]
    if odd or loose:
        raise Question(
            f"{root}: {with_splits[0]}/ holds folders that are called like splits "
            f"({_listed([f for f in inner[with_splits[0]][0] if split_of(f)])}), "
            f"{_listed(odd or loose)} holds others: say --splits none if they are no splits, or name them: --splits "
            f"train={with_splits[0]}/{inner[with_splits[0]][0][0]} and so on"
        )
    found = Layout(
        notes=[f"the splits lie below the classes: {with_splits[0]}/{inner[with_splits[0]][0][0]} and so on"]
    )
    for name in names:
        label, split, rest = name.removeprefix(base).split("/", 2)
        found.places[name] = Place(split_of(split), label, f"{label}/{rest}")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
