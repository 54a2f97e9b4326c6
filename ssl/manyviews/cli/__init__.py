"""The `manyviews` command. Help, `list` and argument errors need no torch and answer at once."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from manyviews import signals
from manyviews.names import meant

COMMANDS = {
    "fit": "train, or go on with a run: fit --config RECIPE.yaml [--run FOLDER] [--model.temperature 0.2 ...]",
    "probe": "linear probe (and logistic regression on small sets) of a checkpoint",
    "knn": "k-nearest-neighbour accuracy of a checkpoint",
    "accuracy": "accuracy on val of a Classifier's own head",
    "cost": "tokens, operations and time of a checkpoint's backbone for one sample",
    "svm": "linear SVM on a checkpoint's frozen features, of all of train or of N ways and K shots over folds",
    "retrieve": "cross-view retrieval of a checkpoint: natural views, or images and captions",
    "zeroshot": "classification by class names, of a checkpoint or of an open_clip model from disk",
    "composition": "true against false captions of the same words (ARO), with a text-only baseline",
    "transfer": "a classifier trained on captions, asked about images (CLOSE), and the modality gap",
    "mine": "cells of samples that shall meet in a batch: neighbours (NegCLIP) or owners (SaHa)",
    "search": "the images nearest to a text or an image, as a contact sheet",
    "fewshot": "N-way K-shot accuracy of a checkpoint, on request with optimal transport to the queries (OpTA)",
    "outliers": "out-of-distribution detection: AUROC and FPR95 against another folder of shards",
    "report": "one table and a picture of neighbours: trained against untrained against raw pixels",
    "embed": "features of a split to .npz or .parquet, or to TensorBoard's projector",
    "export": "the backbone as safetensors, or both towers for open_clip; loaded back and compared",
    "multistage": "MCL: train in stages, each within the clusters of those before; probe all stages' features",
    "claims": "the papers' headline effects, small: runs experiments/claims, tables, plots, verdicts",
    "leaderboard": "all methods on one data set, one backbone: a sorted table and a scatter plot",
    "submit": "queue a job of slurm/: submit pretrain RECIPE.yaml [--nodes 4 --gpus-per-node 8 --then probe zeroshot]",
    "grid": "the points of a sweep's grid, or one point's arguments",
    "doctor": "what would break before a long job is queued: GPUs, NCCL, file system, shards, Slurm, versions",
    "recipe": "the recipes that came along; with a NAME its text, for a file of your own",
    "list": "methods, objectives, backbones, protocols, views and data sets, a line each",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 fine, 2 bad input, 128 + n after signal n."""
    program, argv = argv is None, sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(f"manyviews: no command {argv[0]!r}" + meant(argv[0], COMMANDS), file=sys.stderr)
        return 2
    if argv[:1] == ["fit"]:
        from manyviews.cli import early

        try:
            if (shown := early.help_of(argv[1:])) is not None:
                print(shown)
                return 0
            early.check_fit(argv[1:])
        except (ValueError, OSError) as error:
            print(f"manyviews fit: {error}", file=sys.stderr)
            return 2
        before = signals.listen(signal.SIGTERM, signals.WARNING)  # importing takes seconds
        code = 1
        try:
            from manyviews.cli.fit import fit

            return (code := fit(argv[1:]))
        finally:
            if program and code == 0:  # ends now, which takes seconds in which Slurm's warning would make it a failure
                before = dict.fromkeys(before, signal.SIG_IGN)
            signals.restore(before)
    options = parser()
    arguments, rest = options.parse_known_args(argv)
    if rest and arguments.command not in ("multistage", "submit"):  # whose rest goes to fit
        options.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "list":
        from manyviews.cli.catalogue import catalogue

        print(catalogue())
        return 0
    if arguments.command == "recipe":
        from manyviews.cli.recipes import recipe

        try:
            print(recipe(arguments.name))
        except (ValueError, OSError) as error:
            print(f"manyviews recipe: {error}", file=sys.stderr)
            return 2
        return 0
    try:
        if arguments.command not in ("multistage", "doctor", "submit"):  # whose run is one to come
            from manyviews.cli import early

            early.check_run(arguments)
        return _call(arguments, rest)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"manyviews {arguments.command}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # torch's: sizes that do not fit, no memory
        print(f"manyviews {arguments.command}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2


def _call(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Imports what a command needs, and calls it."""
    if arguments.command in ("claims", "leaderboard"):
        from manyviews.cli import claims

        getattr(claims, arguments.command)(arguments)
    elif arguments.command == "submit":
        from manyviews.cli import slurm

        slurm.submit(arguments, rest)
    elif arguments.command == "grid":
        from manyviews.cli import slurm

        slurm.grid(arguments)
    elif arguments.command == "doctor":
        from manyviews.cli.doctor import doctor

        return doctor(arguments)
    elif arguments.command == "multistage":
        from manyviews.cli import multistage

        multistage.command(arguments, rest)
    else:
        from manyviews import foreign
        from manyviews.cli import source

        source.search_beside(arguments.trust, Path())
        with foreign.trusting(arguments.trust):
            if arguments.command == "report":
                from manyviews.cli.report import report

                report(arguments)
            elif arguments.command in ("zeroshot", "composition", "transfer", "mine", "search"):
                from manyviews.cli import joint

                getattr(joint, arguments.command)(arguments)
            else:
                from manyviews.cli import evaluate

                getattr(evaluate, arguments.command)(arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    """Of all commands but `fit`, which has its own."""
    parser = argparse.ArgumentParser(
        prog="manyviews", description="Self-supervised pretraining whose runs can be trusted."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in COMMANDS.items()
    }
    joint = ("zeroshot", "composition", "transfer", "mine", "search")
    scored = ("probe", "knn", "svm", "accuracy", "cost", "retrieve", "fewshot", "outliers")
    for name in (*scored, "report", "embed", "export", *joint):
        which = made[name].add_mutually_exclusive_group(required=True)
        which.add_argument("--checkpoint", metavar="C", help="a checkpoint file")
        which.add_argument("--run", metavar="FOLDER", help="a run's folder: its newest checkpoint")
        if name in (*joint, "retrieve"):
            which.add_argument("--pretrained", metavar="P", help="an open_clip folder, or a weights file with --model")
            made[name].add_argument("--model", metavar="NAME", help="open_clip's name of what --pretrained is")
        made[name].add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
        made[name].add_argument(
            "--trust", metavar="NAME", action="append", default=[], help="a module or class that it may name and run"
        )
    for name in (*scored, "report", "embed", *joint):
        made[name].add_argument("--data", metavar="D", help="folder of shards (default: those of the run)")
        made[name].add_argument("--label", help="label field (default: the run's)")
        made[name].add_argument("--workers", type=int, help="loader processes")
    for name in (*scored, "report", "zeroshot", "transfer"):
        made[name].add_argument(
            "--split", dest="val_split", metavar="NAME", help="split that is measured (default: the run's, mostly val)"
        )
    for name in (*scored, "zeroshot", "composition", "transfer"):
        made[name].add_argument(
            "--json",
            metavar="FILE",
            help="default: a file in RUN/evaluations, one for each protocol, setting, set, label and step",
        )
    made["probe"].add_argument("--epochs", type=int, default=50, help="of the linear probe (default: %(default)s)")
    made["probe"].add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    made["knn"].add_argument("--k", type=int, nargs="+", default=[20, 200], help="neighbours (default: 20 200)")
    made["knn"].add_argument("--temperature", type=float, nargs="+", default=[0.07, 0.1], help="one for each k")
    made["svm"].add_argument("--c", type=float, default=0.01, help="of the SVM (default: %(default)s)")
    made["svm"].add_argument("--ways", type=int, help="few-shot over ten folds: classes of a fold")
    made["svm"].add_argument("--shots", type=int, help="of each class, with --ways (default: 10)")
    made["svm"].add_argument("--folds", metavar="JSON", help="result whose folds are taken again")
    made["fewshot"].add_argument("--ways", type=int, default=5, help="classes of an episode (default: %(default)s)")
    made["fewshot"].add_argument("--shots", type=int, default=1, help="labelled samples a class (default: %(default)s)")
    made["fewshot"].add_argument("--queries", type=int, default=15, help="of each class (default: %(default)s)")
    made["fewshot"].add_argument("--transport", type=int, default=0, help="rounds of OpTA (default: none)")
    made["outliers"].add_argument("--other", required=True, metavar="FOLDER", help="shards of another data set")
    made["embed"].add_argument("--split", default="val", help="train, val or another (default: %(default)s)")
    made["embed"].add_argument("--out", metavar="FILE", help="features.npz or features.parquet")
    made["embed"].add_argument("--projector", action="store_true", help="write TensorBoard's embedding projector")
    made["export"].add_argument(
        "--out", required=True, metavar="FOLDER", help="model.safetensors and config.json go here"
    )
    made["export"].add_argument("--open-clip", action="store_true", help="a folder that open_clip loads, both towers")
    for name in ("zeroshot", "retrieve", "report"):
        made[name].add_argument("--bank", default="plain", help="plain, openai, simple or a JSON file (plain)")
    made["report"].add_argument("--texts", metavar="FOLDER", help="a run with texts on the same shards, as a row more")
    made["composition"].add_argument("--split", help="whose cases (default: val)")
    made["composition"].add_argument("--aro", metavar="JSON", help="a file of the ARO benchmark instead")
    made["composition"].add_argument("--images", metavar="FOLDER", help="where its image_path starts (default: here)")
    made["composition"].add_argument("--exclude", metavar="JSON", help="list of relations the macro mean leaves out")
    made["transfer"].add_argument("--adapter", choices=("noise", "shift", "both", "none"), default="noise")
    made["transfer"].add_argument("--sigma", type=float, help="of the noise (default: 0.08)")
    made["mine"].add_argument("--kind", choices=("neighbours", "owners"), default="neighbours")
    made["mine"].add_argument("--k", type=int, default=3, help="others of a cell (default: %(default)s)")
    made["mine"].add_argument("--m", type=int, help="candidates for each (owners; default: 3)")
    made["mine"].add_argument("--out", required=True, metavar="FILE.npz", help="for data.cells")
    made["search"].add_argument("--text", help="what to look for")
    made["search"].add_argument("--image", metavar="FILE", help="what to look for")
    made["search"].add_argument("--split", default="val", help="where (default: %(default)s)")
    made["search"].add_argument("--k", type=int, default=16, help="how many (default: %(default)s)")
    made["search"].add_argument("--out", default="search.png", metavar="PNG", help="(default: %(default)s)")
    made["multistage"].add_argument("--config", required=True, metavar="RECIPE.yaml", help="what each stage trains")
    made["multistage"].add_argument("--run", required=True, metavar="FOLDER", help="the stages' runs go below it")
    made["multistage"].add_argument("--stages", type=int, default=3, help="how many (default: %(default)s)")
    made["multistage"].add_argument("--k", type=int, default=10, help="clusters a stage (default: %(default)s)")
    made["multistage"].add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    made["submit"].add_argument("job", choices=("pretrain", "sweep", "probe"))
    made["submit"].add_argument("target", help="recipe, grid, or checkpoint or run; then what else manyviews fit takes")
    made["submit"].add_argument("--nodes", type=int, default=1, help="(default: %(default)s)")
    made["submit"].add_argument("--gpus-per-node", type=int, help="one task each (default: none)")
    made["submit"].add_argument("--tasks-per-node", type=int, help="ranks on CPUs (default: 1)")
    made["submit"].add_argument("--cpus-per-task", type=int, help="for the loaders of a rank")
    made["submit"].add_argument("--time", help="limit of one start; the job goes on in another one")
    made["submit"].add_argument("--partition", help="of the cluster")
    made["submit"].add_argument(
        "--sbatch", default="", metavar="OPTIONS", help='more for sbatch: --sbatch="--account=x --mem=64G"'
    )
    made["submit"].add_argument("--at-once", type=int, help="tasks of a sweep that run at a time")
    made["submit"].add_argument("--then", nargs="+", default=[], metavar="PROTOCOL", help="evaluations that follow")
    made["submit"].add_argument("--dry-run", action="store_true", help="print the commands, submit nothing")
    made["grid"].add_argument("grid", metavar="GRID.yaml", help="recipe, and lists of values by dotted key")
    made["grid"].add_argument("--task", type=int, help="only this point, each argument ended by a NUL")
    made["recipe"].add_argument("name", nargs="?", metavar="NAME", help="such as simclr/photos (default: list them)")
    made["doctor"].add_argument("--data", metavar="FOLDER", help="shards to try")
    made["doctor"].add_argument("--run", default="runs", metavar="FOLDER", help="where runs go (default: %(default)s)")
    for name, folder in (("claims", "experiments/claims"), ("leaderboard", "experiments/leaderboard")):
        made[name].add_argument("names", nargs="*", metavar="NAME", help="which of them (default: all)")
        made[name].add_argument("--studies", default=folder, metavar="FOLDER", help="their YAML (default: %(default)s)")
        made[name].add_argument("--out", default=f"runs/{name}", metavar="FOLDER", help="runs, tables, plots go here")
        made[name].add_argument("--data-dir", metavar="FOLDER", help="raw data sets that some studies need, unpacked")
        made[name].add_argument("--workers", type=int, default=2, help="runs at a time (default: %(default)s)")
        made[name].add_argument("--list", action="store_true", help="only name them")
    return parser
