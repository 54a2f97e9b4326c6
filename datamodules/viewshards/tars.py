"""Tars that are there: an index, an account and a manifest for them."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from viewshards import index as indices
from viewshards.account import Account, Question, printable
from viewshards.decode import class_name, class_number, kind
from viewshards.index import BrokenShard, Index, Keys
from viewshards.limits import DEFAULT, Limits
from viewshards.shards import MANIFEST, Manifest, Shard
from viewshards.sources.source import hashed_split
from viewshards.sources.splits import Splits, split_in, split_of
from viewshards.sources.tree import File, Tree
from viewshards.writer import describe

OURS = (".idx.npz",)
READ = ("classnames.txt", "zeroshot_classification_templates.txt", "nshards.txt", "dataset_type.txt")
"""Texts of CLIP_benchmark's layout; others beside tars are not read."""
INDEXED = "index of existing tars"
NUMBERED = 100_000
"""Classes whose numbers are kept as they are; sparser numbers are names of the classes that occur."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def build_index(
    root: Path,
    splits: str | None = None,
    val_fraction: float | None = None,
    keys: Keys | None = None,
    fast: bool = False,
    limits: Limits = DEFAULT,
) -> Manifest:
    """Indexes every tar below a folder and writes its manifest, with an account of every member.

    A tar's split is the folder it lies in, or a word of its name; `train` where no tar says one. A set that
    `viewshards pack` made keeps its splits and the names of its classes.

    Args:
        root: folder of the tars.
        splits: `val=imagenet-validation-*,...`: splits of tars by patterns of their paths below the folder.
        val_fraction: share of the samples of `train` that becomes `val`, by a hash of their keys.
        keys: whether a sample's name ends at the first dot of its files' names, as WebDataset has it, or at the last.
        fast: hash no contents; a resume then knows the set by the sizes and times of its tars.
        limits: how large what is read may be.

    Raises:
        FileNotFoundError: without any tar. ValueError: a question, where splits, names or classes can be understood in
            several ways. BrokenShard: for a tar that is not whole.
    """
    tree = Tree.of(root, limits)
    _refuse_compressed(root, tree.files)
    tars = [file for file in tree.files if file.name.endswith(".tar")]
    named = [file.name for file in tree.files if file.suffix == ".tar" and not file.name.endswith(".tar")]
    if named:
        raise ValueError(f"{root}: tars must be called .tar, in small letters; rename {', '.join(named)[:200]}")
    odd = {name: why for name, why in tree.left_out.items() if name.endswith(".tar")}
    if odd:
        raise BrokenShard("; ".join(f"{root / name}: not a file, but {why}" for name, why in odd.items()))
    if not tars:
        raise FileNotFoundError(f"{root}: no .tar files below it")
    old = _manifest(root)
    before = old if old is not None and old.made.get("source") != INDEXED else None
    if before is not None:
        known = {shard.file for shards in before.splits.values() for shard in shards}
        foreign = [tar.name for tar in tars if tar.name not in known]
        if foreign:
            raise ValueError(
                f"{root}: packed by viewshards, and {', '.join(foreign)[:200]} is not of it: its classes and splits "
                "are others. Put other tars into a folder of their own"
            )
    if val_fraction is None and old is not None and old.made.get("val_fraction"):
        val_fraction = float(old.made["val_fraction"])
    account = _beside(tree)
    said = Splits.parsed(splits)
    used = {next((name for _, name in said.names or () if fnmatch.fnmatch(tar.name, name)), None) for tar in tars}
    unused = [name for _, name in said.names or () if name not in used]
    if unused:
        raise ValueError(f"{root}: no tar is left for {', '.join(unused)} of --splits; there is {tars[0].name}")
    told = {tar.name: _split(root, tar, said, before) for tar in tars}
    unnamed = [name for name, split in told.items() if split is None]
    if unnamed and len(unnamed) < len(tars):
        raise Question(
            f"{root}: {len(unnamed)} tars name no split, such as {unnamed[0]}, others do: say which by --splits, as in "
            f"--splits train={unnamed[0]}; a pattern with * names several"
        )
    classes = _Classes(limits)
    shards: dict[str, list[Shard]] = defaultdict(list)
    kept: list[str] = []
    if val_fraction is not None and "val" in told.values():
        raise ValueError(f"{root}: there is a val split, and --val-fraction would not be used: leave it out")
    for tar in track(tars, description="indexing"):
        path = root / tar.name
        index = indices.scan(path, limits, keys, account)
        if not len(index):
            account.notes.append(f"{tar.name}: no sample in it")
            continue
        classes.see(path, index)
        split = told[tar.name] or "train"
        for part, positions in _parts(index, val_fraction if split == "train" else None).items():
            name = indices.path_of(str(path), part)
            indices.save(index if positions is None else index.only(positions), name)
            kept.append(name)
            shards[part or split].append(describe(path, fast, part=part, file=tar.name))
    for place in {indices.path_of(str(root / tar.name), part) for tar in tars for part in (None, "train", "val")}:
        if place not in kept:
            Path(place).unlink(missing_ok=True)  # of a part that there is no more
    names = _names(tree)
    if not shards:
        raise ValueError("\n".join([f"{root}: no sample in any tar", *account.lines(), *account.listed()]))
    if val_fraction:
        account.notes.append(
            f"val is a share of {val_fraction:g} of train, by names of samples; --val-fraction 0: none"
        )
    if before is not None:
        labels, named = before.labels, before.named
        account.notes.append("packed by viewshards: splits and names of classes stay as they were")
    else:
        labels, named = classes.labels(names, account), classes.named()
    if unnamed and "val" not in shards:
        account.notes.append("no tar names a split: all are train; --val-fraction 0.05 makes a val of a share of them")
    elif "val" not in shards:
        account.notes.append(
            "there is no split 'val': --val-fraction takes it from train, data.val_split names another"
        )
    made: dict[str, Any] = {"source": INDEXED, "keys": keys or "first-dot", "account": account.to_json()}
    made |= {"val_fraction": val_fraction} if val_fraction else {}
    made |= {"templates": _lines(root / READ[1])} if (root / READ[1]).is_file() else {}
    if before is not None:
        made |= {**before.made, "keys": keys or "first-dot"}
    manifest = Manifest(root.resolve().name, dict(shards), labels, made, named)
    manifest.save(root)
    return manifest


def _refuse_compressed(root: Path, files: list[File]) -> None:
    packed = [file.name for file in files if file.name.lower().endswith(COMPRESSED)]
    if packed:
        tool = {"gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd"}
        name = packed[0]
        raise ValueError(
            f"{root}: {len(packed)} compressed tars, first {name}: samples in them cannot be found one by one. Unpack "
            f"them: {tool[name.rpartition('.')[2].lower()]} {root / name}"
        )


def _manifest(root: Path) -> Manifest | None:
    """The manifest that is there; None without one, or if it is damaged."""
    try:
        return Manifest.load(str(root)) if (root / MANIFEST).is_file() else None
    except ValueError:  # it is made again
        return None


def _beside(tree: Tree) -> Account:
    """The account of what lies beside the tars."""
    account = tree.account()
    account.found -= sum(file.suffix == ".tar" for file in tree.files)
    for file in tree.files:
        if file.name.endswith(OURS) or file.name == MANIFEST:
            account.skipped["of viewshards"] += 1
        elif file.parts[-1] in READ:
            account.tables += 1
            if file.parts[-1] == "nshards.txt":
                _check_count(tree, file)
        elif file.suffix != ".tar":
            account.leave(printable(file.name), "beside the tars, not read")
    return account


def _check_count(tree: Tree, file: File) -> None:
    folder = file.name.rpartition("/")[0]
    said = (tree.root / file.name).read_text().strip()
    there = sum(each.suffix == ".tar" and each.name.rpartition("/")[0] == folder for each in tree.files)
    if said != str(there):
        raise ValueError(f"{tree.root / file.name}: it says {said[:20]} shards, there are {there}")


def _split(root: Path, tar: File, splits: Splits, before: Manifest | None) -> str | None:
    for wanted, pattern in splits.names or ():
        if fnmatch.fnmatch(tar.name, pattern):
            return wanted
    if splits.names == ():
        return None
    if before is not None:
        there = {split: {shard.file: shard.part for shard in shards} for split, shards in before.splits.items()}
        packed = [split for split, files in there.items() if tar.name in files]
        return "train" if len(packed) > 1 else packed[0]
    found = {*map(split_of, tar.parts[:-1]), split_in(tar.parts[-1].removesuffix(".tar"))} - {None}
    if len(found) > 1:
        raise ValueError(
            f"{root}: {tar.name} names several splits: {', '.join(sorted(map(str, found)))}; say which: --splits"
        )
    return found.pop() if found else None


def _parts(index: Index, val_fraction: float | None) -> dict[str | None, list[int] | None]:
    """Positions by the name of a part; one part without a name for all."""
    if not val_fraction:
        return {None: None}
    found: dict[str | None, list[int] | None] = {}
    for position in range(len(index)):
        part = found.setdefault(hashed_split(index.key(position), val_fraction), [])
        assert part is not None
        part.append(position)
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


@dataclass
class _Classes:
    """What the `.cls` files of a set say, by their extension: numbers, or names."""

    limits: Limits
    highest: dict[str, int] = field(default_factory=dict)
    words: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Of each extension the contents that occur, and where first."""

    def see(self, tar: Path, index: Index) -> None:
        """Reads the classes of a tar.

        Raises:
            BrokenShard: naming the sample, for what is neither a number nor a name.
        """
        with open(tar, "rb") as f:
            for position in range(len(index)):
                for extension, (offset, size) in index.files(position).items():
                    if kind(extension) != "cls":
                        continue
                    f.seek(offset)
                    where = f"{tar}: {index.key(position)}"
                    data = f.read(min(size, 1000))
                    try:
                        word = class_name(data)
                        if not any(c.isalpha() for c in word) or _reads_as_number(word):
                            class_number(data, Limits(classes=2**62))
                    except ValueError as error:
                        raise BrokenShard(f"{where}: .{extension}: {error}") from error
                    if word not in self.words[extension] and word != "-1":
                        self.words[extension][word] = where
                        self.limits.check("classes", len(self.words[extension]), f"{where}: classes")

    def named(self) -> list[str]:
        """Label fields whose contents are names."""
        return [extension for extension, words in self.words.items() if words and not self._numbers(extension)]

    def labels(self, names: list[str] | None, account: Account) -> dict[str, list[str]]:
        """Names of the classes by label field.

        Raises:
            ValueError: if there are fewer names than classes.
        """
        found = {}
        for extension, words in self.words.items():
            numbers = self._numbers(extension)
            if numbers:
                found[extension] = [str(number) for number in range(max(numbers) + 1)]
            elif words:
                found[extension] = sorted(words, key=lambda word: (len(word), word) if word.isdecimal() else (0, word))
                what = "numbers too high to count up to" if next(iter(words)).isdecimal() else "names"
                account.notes.append(f".{extension} holds {what}: its {len(words):,} classes are those that occur")
        if names is not None and "cls" in found and "cls" not in self.named():
            if len(names) < len(found["cls"]):
                raise ValueError(f"{READ[0]}: {len(names)} names, the classes in .cls go up to {len(found['cls']) - 1}")
            found["cls"] = names
        return found

    def _numbers(self, extension: str) -> list[int]:
        """The numbers, if all are, and low enough to name all up to the highest."""
        words = self.words[extension]
        strange = [word for word in words if not _is_number(word)]
        if strange and len(strange) < len(words):
            other = next(word for word in words if _is_number(word))
            raise BrokenShard(
                f"{words[strange[0]]}: class {strange[0]!r} in .{extension}, where others have numbers like {other}: "
                "all must be numbers, or all names"
            )
        numbers = [] if strange else [class_number(word.encode(), Limits(classes=2**62)) for word in words]
        return numbers if max(numbers, default=0) < NUMBERED else []


def _reads_as_number(word: str) -> bool:
    """Whether it is written as some number, which is no name: `1.0`, `1e3`, `nan`, `0x10`."""
    try:
        float(word)
    except ValueError:
        return word.lower().startswith(("0x", "0b", "0o"))
    return True


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 19


def _names(tree: Tree) -> list[str] | None:
    """Names of classes, of CLIP_benchmark's layout; in the folder, or equal in those of its splits."""
    found = [_lines(tree.root / file.name) for file in tree.files if file.parts[-1] == READ[0]]
    if any(each != found[0] for each in found):
        raise ValueError(f"{tree.root}: several files {READ[0]} that differ")
    return found[0] if found else None


def _lines(path: Path) -> list[str]:
    """Lines of a text.

    Raises:
        ValueError: if one is blank, which would shift the numbers of all after it.
    """
    DEFAULT.check("text_bytes", path.stat().st_size, f"{path}: bytes")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    if "" in lines:
        raise ValueError(f"{path} line {lines.index('') + 1}: blank; a line names a class")
    return lines
