"""The `viewshards` command: pack, index, verify, inspect, tracks."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
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
        "source", metavar="SOURCE", help="folder, .csv, .jsonl, builtin:NAME, torchvision:NAME, sklearn:NAME"
    )
    pack.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    pack.add_argument("--shard-mb", type=float, default=100, help="target size of a shard (default: %(default)s MB)")
    pack.add_argument("--shard-samples", type=int, help="samples a shard, instead of --shard-mb")
    pack.add_argument("--resize", type=int, help="bring larger pictures to this shorter side, in pixels")
    pack.add_argument("--quality", type=int, default=92, help="of the JPEG a resized picture becomes (%(default)s)")
    pack.add_argument("--val-fraction", type=float, default=0.1, help="of a source without splits (%(default)s)")
    pack.add_argument("--labels", default="", help="further columns of a table that are labels, comma separated")
    pack.add_argument("--kind", choices=("image", "cloud", "clip", "h5"), help="of a folder's files, if it has several")
    pack.add_argument("--split-by", metavar="COLUMN", help="split a table by this column: equal values stay together")
    pack.add_argument("--root", default="data", help="where torchvision finds its data (%(default)s)")
    pack.add_argument("--outside", action="store_true", help="let a table name files outside of its folder")
    pack.add_argument("--skip-broken", action="store_true", help="leave out what does not decode, and list it")
    pack.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")

    index = commands.add_parser("index", help="index WebDataset tars that are there already")
    index.add_argument("root", metavar="ROOT", type=Path, help="folder of the tars")
    index.add_argument(
        "--fast", action="store_true", help="hash no contents: a resume then knows the set by sizes and times only"
    )
    index.add_argument("--split", help="the split all of them belong to (default: train, val or test in their names)")

    verify = commands.add_parser("verify", help="check sizes, end blocks and checksums, and decode every sample")
    verify.add_argument("root", metavar="ROOT", type=Path)

    tracks = commands.add_parser("tracks", help="add trajectories to a set of clips", description=tracks_help)
    tracks.add_argument("root", metavar="ROOT", help="shards with clips")
    tracks.add_argument("out", metavar="OUT", type=Path, help="folder for the shards with trajectories")
    tracks.add_argument("--frames", type=int, default=16, help="of each clip, evenly spaced (default: %(default)s)")
    tracks.add_argument(
        "--extractor", metavar="MODULE:NAME", help="a class or function: (T, H, W, 3) bytes to (T, h, w)"
    )
    tracks.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")

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
    "whose numbers are not comparable with one's. Goes on where it was broken off."
)


def _tracks(arguments: argparse.Namespace) -> int:
    from viewshards.pack import Encoding, pack
    from viewshards.tracks import ColourTracks, TrackedShards

    extractor = ColourTracks()
    if arguments.extractor:
        module, _, name = arguments.extractor.partition(":")
        found = getattr(importlib.import_module(module), name)
        extractor = found() if isinstance(found, type) else found
    limits = Limits.of(arguments.limit)
    source = TrackedShards(arguments.root, extractor, arguments.frames, limits)
    pack(source, arguments.out, Encoding(limits=limits), workers=max(1, arguments.workers))
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    from viewshards.pack import Encoding, pack
    from viewshards.sources import open_source

    labels = [name for name in arguments.labels.split(",") if name]
    limits = Limits.of(arguments.limit)
    asked = arguments.val_fraction, labels, arguments.split_by, arguments.kind, arguments.outside
    source = open_source(arguments.source, arguments.root, *asked, limits)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    encoding = Encoding(arguments.resize, arguments.quality, arguments.skip_broken, limits)
    manifest = pack(
        source, arguments.out, encoding, arguments.shard_mb, arguments.shard_samples, max(1, arguments.workers)
    )
    skipped = manifest.made["skipped"]
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    return 1 if skipped else 0


def _index(arguments: argparse.Namespace) -> int:
    from viewshards.existing import build_index

    manifest = build_index(arguments.root, arguments.split, arguments.fast, Limits.of(arguments.limit))
    if arguments.fast:
        print("contents were not hashed: a resumed run knows these shards by sizes and times only", file=sys.stderr)
    for split, shards in manifest.splits.items():
        print(f"{split}: {sum(s.samples for s in shards)} samples in {len(shards)} shards")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from viewshards.existing import verify
    from viewshards.shards import Manifest

    problems = 0
    for problem in verify(arguments.root, Limits.of(arguments.limit)):
        print(problem)
        problems += 1
    print(f"{arguments.root}: {problems} problem(s)" if problems else f"{arguments.root}: every sample is whole")
    manifest = Manifest.load(str(arguments.root))
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
        print(f"contact sheet: {arguments.sheet}")
    return 0
