"""`manyviews submit` and `manyviews grid`: the scripts of slurm/ in the queue. Needs no torch."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from manyviews.foreign import read_yaml

SCRIPTS = Path("slurm")
OUTPUT = Path("runs/slurm")
EVALUATIONS = ("probe", "knn", "svm", "accuracy", "retrieve", "fewshot", "zeroshot", "composition", "transfer", "cost")


def points(path: Path) -> list[list[str]]:
    """The arguments of `manyviews fit` for each point of a grid, the last key changing fastest.

    A grid is a YAML of `recipe` (relative to its folder) and `grid`, which maps dotted keys to lists of values.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or content.keys() != {"recipe", "grid"}:
        raise ValueError(f"{path}: a grid has the keys recipe and grid, no others")
    if not isinstance(content["recipe"], str) or not isinstance(content["grid"] or {}, dict):
        raise ValueError(f"{path}: recipe must be a path and grid map keys to lists of values")
    recipe = path.parent / content["recipe"]
    if not recipe.exists():
        raise ValueError(f"{path}: recipe {recipe} does not exist")
    grid: dict[str, list[Any]] = content["grid"] or {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{path}: grid.{key} must be a list of values, got {values!r}")
    given = [[f"--{key}={_in_a_line(value)}" for value in values] for key, values in grid.items()]
    return [[f"--config={recipe}", *point] for point in itertools.product(*given)]


def _in_a_line(value: Any) -> str:
    """A value in YAML without a line break."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("...\n")
    if "\n" in text.removesuffix("\n"):
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, default_style='"')
    return text.removesuffix("\n")


def grid(arguments: argparse.Namespace) -> None:
    """Prints one point's arguments, each ended by a NUL, or all points."""
    found = points(Path(arguments.grid))
    if arguments.task is None:
        for number, point in enumerate(found):
            print(number, shlex.join(point))
    elif not 0 <= arguments.task < len(found):
        raise ValueError(f"{arguments.grid} has {len(found)} points, 0 to {len(found) - 1}; got task {arguments.task}")
    else:
        sys.stdout.write("".join(f"{word}\0" for word in found[arguments.task]))  # any character but this may be in one


def submit(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Queues a job, an array, or a chain, or with --dry-run prints the commands that would."""
    target = Path(arguments.target)
    words = [part for word in rest for part in word.split("=", 1)]
    run = next((value for key, value in itertools.pairwise(words) if key == "--run"), None)
    _refuse(arguments, target, run)
    # As the scripts name a run: experiments/clip/emoji.yaml is clip-emoji.
    path = str(target.with_suffix(""))
    name = path.rpartition("experiments/")[2].replace("/", "-") if "experiments/" in path else target.stem
    title = re.sub(r"[^\w.+-]", "_", name)  # Slurm makes file names of it, with % for placeholders
    options, output = _options(arguments), f"--output={OUTPUT}/%x-%j.out"
    if arguments.job == "sweep":
        at_once = f"%{arguments.at_once}" if arguments.at_once else ""
        options = [f"--array=0-{len(points(target)) - 1}{at_once}", *options]
        output = f"--output={OUTPUT}/%x-%A_%a.out"
    if arguments.job == "probe":
        command, *more = rest if rest and not rest[0].startswith("-") else ["probe", *rest]
        _evaluation(command, str(target), more)
        name, title = f"{command}-{name}", f"{command}-{title}"
    for command in arguments.then:
        _evaluation(command, "RUN", [])
    if arguments.dry_run:
        print(f"mkdir -p {OUTPUT}")
    else:
        if arguments.job != "probe":
            ends = [points(target)[0], points(target)[-1]] if arguments.job == "sweep" else [[f"--config={target}"]]
            for given in ends if len(ends) < 2 or ends[0] != ends[1] else ends[:1]:
                _check([*given, *rest])
        OUTPUT.mkdir(parents=True, exist_ok=True)

    def variable(job: str) -> str | None:
        return job if arguments.dry_run else None

    script = str(SCRIPTS / f"{arguments.job}.sbatch")
    first = _sbatch(variable(arguments.job), f"--job-name={title}", output, *options, script, str(target), *rest)
    one = ["--gpus=1"] if arguments.gpus_per_node else []
    one += [f"--cpus-per-task={arguments.cpus_per_task}"] if arguments.cpus_per_task else []
    before = ""
    for command in arguments.then:  # in order; one that fails does not take the next with it
        after = [f"--dependency=afterok:{first}{before}", "--kill-on-invalid-dep=yes", f"--job-name={command}-{title}"]
        given = [output, *one, *_site(arguments), str(SCRIPTS / "probe.sbatch"), run or f"runs/{name}-{first}", command]
        before = f",afterany:{_sbatch(variable(command), *after, *given)}"


def _refuse(arguments: argparse.Namespace, target: Path, run: str | None) -> None:
    """What would fail in the queue and can be seen here.

    Raises:
        ValueError: saying what.
    """
    if not (SCRIPTS / "job.sh").exists():
        raise ValueError(f"{SCRIPTS.absolute()} has no job scripts: run this in the project's root")
    if not target.exists():
        raise ValueError(f"{target} does not exist (it comes first, before what manyviews fit takes)")
    if arguments.then and arguments.job != "pretrain":
        raise ValueError("--then follows a pretrain job")
    if arguments.at_once and arguments.job != "sweep":
        raise ValueError("--at-once is for a sweep")
    if arguments.job == "sweep" and run and "--array=" not in arguments.sbatch:
        raise ValueError(f'all tasks would go on in {run}: name one, --sbatch="--array=3" --run runs/NAME-ARRAY_3')
    if arguments.job == "pretrain" and "grid" in (read_yaml(target) or {}):
        raise ValueError(f"{target} is a grid: manyviews submit sweep {target}")
    if arguments.job == "probe" and target.is_dir() and not (target / "checkpoints").exists():
        raise ValueError(f"{target} is no run: it has no checkpoints")


def _evaluation(command: str, run: str, options: list[str]) -> None:
    """Lets the command read its arguments now.

    Raises:
        ValueError: for a command that evaluates nothing. SystemExit: with argparse's message.
    """
    if command not in EVALUATIONS:
        raise ValueError(f"no evaluation {command!r}; there are {', '.join(EVALUATIONS)}")
    from manyviews.cli import parser

    parser().parse_args([command, "--run", run, *options])


def _options(arguments: argparse.Namespace) -> list[str]:
    """Of sbatch; a task a GPU, or as many as asked for."""
    tasks = arguments.tasks_per_node or arguments.gpus_per_node or 1
    options = [f"--nodes={arguments.nodes}", f"--ntasks-per-node={tasks}"]
    for name in ("gpus_per_node", "cpus_per_task", "time"):
        if value := getattr(arguments, name):
            options.append(f"--{name.replace('_', '-')}={value}")
    return options + _site(arguments)


def _site(arguments: argparse.Namespace) -> list[str]:
    """What all jobs need here, whatever their size."""
    return ([f"--partition={arguments.partition}"] if arguments.partition else []) + shlex.split(arguments.sbatch)


def _check(given: list[str]) -> None:
    """Lets `manyviews fit` read its arguments now, rather than after a night in the queue.

    Raises:
        ValueError: with what it says.
    """
    code = "import sys; from manyviews.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "fit", *given, "--print_config"], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().removeprefix("manyviews fit: "))


MARK = "\0"
"""Around the name of a variable that stays open to the shell; no argument can hold this character itself."""


def _pasted(word: str) -> str:
    """A word quoted for a shell, but for the numbers of earlier jobs, which the shell knows by their variables."""
    parts = word.split(MARK)
    quoted = [f'"${part}"' if number % 2 else part and shlex.quote(part) for number, part in enumerate(parts)]
    return "".join(quoted)


def _sbatch(variable: str | None, *given: str) -> str:
    """Submits and returns the job's number; with a shell variable to hold it, prints the command and returns that."""
    command = ["sbatch", "--parsable", *given]
    if variable:
        print(f"{variable}=$({' '.join(map(_pasted, command))})")
        return f"{MARK}{variable}{MARK}"
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("sbatch is not here: submit on a login node of a Slurm cluster, or see --dry-run") from None
    if done.returncode:
        raise ValueError(f"{shlex.join(command)}: {done.stderr.strip()}")
    job = done.stdout.strip().partition(";")[0]
    print(f"{job}  {shlex.join(given)}")
    return job
