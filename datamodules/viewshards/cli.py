"""The `viewshards` command: pack, index, verify, inspect, tracks."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from viewshards.limits import Limits


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 fine, 1 problems found, 2 bad input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        commands = {"pack": _pack, "index": _index, "verify": _verify, "inspect": _inspect, "tracks": _tracks}
        return commands[arguments.command](arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"viewshards {arguments.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="viewshards", description="Shards for training: make, index, check, look at.")
    names = [field.name for field in fields(Limits)]
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pack = commands.add_parser("pack", help="write a data set into shards", description=pack_help)
    pack.add_argument(
        "source", metavar="SOURCE", help="folder, .csv, .jsonl, ..., builtin:NAME, torchvision:NAME, sklearn:NAME"
    )
    pack.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    pack.add_argument("--shard-mb", type=_positive(float), help="target size of a shard (default: 100 MB)")
    pack.add_argument("--shard-samples", type=_positive(int), help="samples a shard, instead of --shard-mb")
    pack.add_argument("--resize", type=_positive(int), help="bring larger pictures to this shorter side, in pixels")
    pack.add_argument("--quality", type=_positive(int), help="of the JPEG a resized JPEG becomes (default: 92)")
    pack.add_argument("--kind", choices=("image", "cloud", "clip", "h5"), help="of a folder's files, if it has several")
    pack.add_argument("--splits", metavar="SPLIT=NAME,...", help="folders, or values of a table, that are splits; none")
    pack.add_argument(
        "--val-fraction", type=_share, help="becomes val: of a source without splits (default: 0.1), or of its train"
    )
    pack.add_argument(
        "--leaks", choices=("keep", "drop", "stop"), default="keep", help="equal files in two splits (keep)"
    )
    pack.add_argument("--table", metavar="FILE", help="of a folder, that says more of its files; none")
    pack.add_argument(
        "--columns", metavar="KIND=COLUMN,...", help="which column of a table is file_name, caption, label"
    )
    pack.add_argument("--labels", help="further columns of a table that are labels, comma separated")
    pack.add_argument("--split-by", metavar="COLUMN", help="split a table by this column: equal values stay together")
    pack.add_argument("--encoding", help="of a table (default: by its first bytes, else UTF-8)")
    pack.add_argument(
        "--outside", action="store_true", default=None, help="let a table name files outside of its folder"
    )
    pack.add_argument(
        "--value-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="black and white in pictures of 32 bits or floats",
    )
    pack.add_argument("--channels", type=_positive(int), help="bands of pictures (.tif, .npy, ...) that all stay")
    pack.add_argument("--cloud-axes", choices=("points-first", "points-last"), help="of arrays (N, 3) or (3, N)")
    pack.add_argument("--cloud-array", metavar="NAME", help="the array of an .npz that is the cloud")
    pack.add_argument("--root", help="where torchvision finds its data (default: data)")
    pack.add_argument("--strict", action="store_true", help="an error if anything but system files is left out")
    pack.add_argument(
        "--workers", type=_positive(int), default=len(os.sched_getaffinity(0)), help="processes (%(default)s)"
    )

    index = commands.add_parser("index", help="index WebDataset tars that are there already")
    index.add_argument("root", metavar="ROOT", type=Path, help="folder of the tars, also in folders below it")
    index.add_argument(
        "--fast", action="store_true", help="hash no contents: a resume then knows the set by sizes and times only"
    )
    index.add_argument(
        "--splits",
        metavar="SPLIT=PATTERN,...",
        help="of tars by their paths, such as val=*-0001.tar (default: train, val "
        "or test in the names of tars or folders)",
    )
    index.add_argument("--val-fraction", type=_share, help="of the samples of train that becomes val, by their keys")
    index.add_argument(
        "--keys",
        choices=("first-dot", "last-dot"),
        default="first-dot",
        help="where a sample's name ends (%(default)s)",
    )

    verify = commands.add_parser("verify", help="check sizes, end blocks and checksums, and decode every sample")
    verify.add_argument("root", metavar="ROOT", type=Path)

    tracks = commands.add_parser("tracks", help="add trajectories to a set of clips", description=tracks_help)
    tracks.add_argument("root", metavar="ROOT", help="shards with clips")
    tracks.add_argument("out", metavar="OUT", type=Path, help="folder for the shards with trajectories")
    tracks.add_argument(
        "--frames", type=_positive(int), default=16, help="of each clip, evenly spaced (default: %(default)s)"
    )
    tracks.add_argument(
        "--extractor", metavar="MODULE:NAME", help="a class or function: (T, H, W, 3) bytes to (T, h, w)"
    )
    tracks.add_argument(
        "--workers", type=_positive(int), default=len(os.sched_getaffinity(0)), help="processes (%(default)s)"
    )

    inspect = commands.add_parser("inspect", help="counts, fields, sizes, class balance, contact sheet")
    inspect.add_argument("root", metavar="ROOT")
    inspect.add_argument("--split", default="train", help="(default: %(default)s)")
    inspect.add_argument("--sheet", type=Path, help="write a contact sheet to this PNG")
    for command in (pack, index, verify, tracks, inspect):
        command.add_argument(
            "--limit", action="append", default=[], metavar="NAME=NUMBER", help=f"raise a limit: {', '.join(names)}"
        )
    return parser


pack_help = (
    "Writes plain WebDataset tars with an index beside each and a manifest. A killed or interrupted pack goes on when "
    "the same command is given again."
)


tracks_help = (
    "Cuts clips into trajectories by colour, connected regions and overlap: a light stand-in for a panoptic tracker, "
    "whose numbers are not comparable with one's. Resumes after an interruption."
)


def _tracks(arguments: argparse.Namespace) -> int:
    from viewshards.encoding import Encoding
    from viewshards.pack import pack
    from viewshards.tracks import ColourTracks, TrackedShards

    extractor = ColourTracks()
    if arguments.extractor:
        module, _, name = arguments.extractor.partition(":")
        found = getattr(importlib.import_module(module), name)
        extractor = found() if isinstance(found, type) else found
    limits = Limits.of(arguments.limit)
    source = TrackedShards(arguments.root, extractor, arguments.frames, limits)
    pack(source, arguments.out, Encoding(limits=limits), workers=arguments.workers)
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    from viewshards.encoding import Encoding
    from viewshards.pack import pack
    from viewshards.sources import Options, open_source

    if arguments.quality is not None and arguments.resize is None:
        raise ValueError(
            "--quality is of pictures that are resized, and would not be used: give --resize, or leave it out"
        )
    limits = Limits.of(arguments.limit)
    said = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    if said["value_range"] is not None:
        low, high = said["value_range"] = tuple(said["value_range"])
        if not low < high:
            raise ValueError(f"--value-range {low:g} {high:g}: expected the value that is black, then that of white")
    source = open_source(arguments.source, Options(**said), limits)
    encoding = Encoding(arguments.resize, 92 if arguments.quality is None else arguments.quality, limits)
    size = arguments.shard_mb, arguments.shard_samples
    pack(source, arguments.out, encoding, *size, arguments.workers, arguments.leaks, arguments.strict)
    return 0


def _positive(kind: type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    number.__name__ = "number"  # as argparse calls what it cannot read
    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share of at least 0 and below 1, got {text}")
    return value


def _index(arguments: argparse.Namespace) -> int:
    from viewshards.account import Account
    from viewshards.shards import MANIFEST
    from viewshards.tars import build_index

    asked = arguments.splits, arguments.val_fraction, arguments.keys, arguments.fast
    manifest = build_index(arguments.root, *asked, Limits.of(arguments.limit))
    if "account" in manifest.made:
        for line in Account.of(manifest.made["account"]).report(arguments.root / MANIFEST):
            print(line, file=sys.stderr)
    if arguments.fast:
        print("contents were not hashed: a resumed run knows these shards by sizes and times only", file=sys.stderr)
    for split, shards in manifest.splits.items():
        print(f"{split}: {sum(s.samples for s in shards)} samples in {len(shards)} shards")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from viewshards.shards import Manifest
    from viewshards.verify import NOT_CHECKED, partial, verify

    problems = 0
    for problem in verify(arguments.root, Limits.of(arguments.limit)):
        print(problem)
        problems += 1
    print(f"{arguments.root}: {problems} problem(s)" if problems else f"{arguments.root}: every sample is whole")
    manifest = Manifest.load(str(arguments.root))
    if not problems:
        for line in partial(arguments.root):
            print(line)
    print(f"not checked: {NOT_CHECKED}")
    if any(shard.sha256 is None for shards in manifest.splits.values() for shard in shards):
        print("indexed by --fast: that no byte has changed could not be checked")
    return 1 if problems else 0


def _inspect(arguments: argparse.Namespace) -> int:
    from viewshards.existing import contact_sheet, inspect

    limits = Limits.of(arguments.limit)
    for name, value in inspect(arguments.root, arguments.split, limits=limits).items():
        if isinstance(value, dict):
            if not value:
                continue
            print(f"{name}:")
            for key, count in value.items():
                print(f"  {key:<28} {count}")
        else:
            print(f"{name}: {value}")
    if arguments.sheet:
        contact_sheet(arguments.root, arguments.split, arguments.sheet, limits=limits)
        print(f"contact sheet: {arguments.sheet}, names of its pictures: {arguments.sheet.with_suffix('.txt')}")
    return 0
