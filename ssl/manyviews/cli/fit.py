"""`manyviews fit`: LightningCLI, with a run folder that resumes itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings  # type: ignore[attr-defined]
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

import manyviews.evaluation  # short class names in YAML are those of imported classes
import manyviews.methods
from manyviews import foreign, internals, signals
from manyviews.backbones import not_read
from manyviews.cli.errors import explain
from manyviews.cli.written import Written, check_written, spell_out
from manyviews.monitoring import Board, CollapseAlarm, Monitor
from manyviews.runs import (
    AtomicCheckpointIO,
    Checkpoints,
    FiniteGuard,
    FullySharded,
    Ledger,
    Patience,
    RandomState,
    RunFolder,
    StopOnSignal,
    Stopped,
    newest_whole,
)
from manyviews.runs.files import check_secrets, write_text
from manyviews.runs.folder import provenance
from manyviews.runs.ledger import goodput
from manyviews.runs.parent import start_from
from manyviews.runs.sharded import register
from manyviews.runs.storage import NAME

register()
set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning lets a configuration be an address

FINISHED = "finished.json"
ERROR = "error.txt"
ONLY_OURS = (
    "of the strategies that cut the weights only fsdp2 keeps what evaluation, teachers and checkpoints need: give "
    "--trainer.strategy fsdp2"
)


class FitCLI(LightningCLI):
    """The configuration: `model`, `data`, `trainer` as in Lightning; the run's folder and the default callbacks."""

    options: ClassVar[list[str]] = []
    """All options of the last parser that was built, for error messages."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our arguments beside Lightning's."""
        parser.add_argument("--run", type=str | None, help="folder of the run (default: runs/NAME of the config file)")
        parser.add_argument(
            "--from",
            type=str | None,
            help="a run or checkpoint whose weights this run begins with; optimiser, schedule and memories begin anew",
        )
        parser.add_argument("--timeout", type=float, default=900.0, help="seconds that ranks wait for each other")
        parser.add_argument(
            "--startup_timeout", type=float, default=1800.0, help="the same, until the first step has been made"
        )
        parser.add_argument(
            "--trust", type=str, action="append", help="a module or class that an exported folder or a run may name"
        )
        parser.add_lightning_class_args(Monitor, "monitor")
        parser.add_lightning_class_args(CollapseAlarm, "collapse")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(StopOnSignal, "stop")
        parser.add_lightning_class_args(FiniteGuard, "finite")
        FitCLI.options = list(parser._option_string_actions)

    def before_instantiate_classes(self) -> None:
        """Opens the run's folder, or refuses to continue another experiment in it."""
        files = self.config.get("config") or []
        default = Path("runs") / (Path(str(files[0])).stem if files else "unnamed")
        if self.config.trainer.fast_dev_run:
            self._dry = tempfile.TemporaryDirectory(prefix="manyviews-dry-run-")  # gone at the end
            default, self.config.run = Path(self._dry.name), None
            print("dry run (trainer.fast_dev_run): nothing of it is kept", file=sys.stderr)
        self.folder = RunFolder(Path(self.config.run or default))
        self.config.run = str(self.folder.path)
        self.config.checkpoints.folder = str(self.folder.checkpoints)
        spell_out(self.config)
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        self.resolved: dict[str, Any] = {k: v for k, v in dumped.items() if k not in ("config", "trust")}
        check_written(self.resolved)
        check_secrets(self.resolved)
        self.folder.check(self.resolved)
        if self.folder.config_file.exists() and not getattr(rank_zero_only, "rank", 0):
            self.folder.lock()  # before it is looked at what is there
        self.resume_from = newest_whole(self.folder.checkpoints)

    def instantiate_classes(self) -> None:
        """Builds all; published weights are not read where the run goes on, nor its parent's."""
        with not_read() if self.resume_from is not None else contextlib.nullcontext():
            super().instantiate_classes()
        if self.config["from"] is not None and self.resume_from is None:
            self.provenance.parent = start_from(self.model, Path(self.config["from"]))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with our logger, checkpoint format and remaining callbacks."""
        if self.config.trainer.strategy in FSDPStrategy.get_registered_strategies():  # Lightning wants GPUs for it
            raise ValueError(ONLY_OURS)
        logger = True
        if self.config.trainer.logger is None:
            # Events after the checkpoint, written before the run died, are taken back.
            match = NAME.fullmatch(self.resume_from.name) if self.resume_from else None
            purge = int(match[1]) + 1 if match else 0
            logger = Board(self.folder.path, name="", version="", purge_step=purge, default_hp_metric=False)  # type: ignore[assignment]
        # Lightning's own requeueing saves inside the handler, and takes the checkpoint of any earlier job.
        environment = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
        self.ledger = Ledger(self.folder.path / "attempts", self.config.monitor.every_n_steps)
        self.provenance = Written(self.folder, self.resolved)
        extra: list[pl.Callback] = [RandomState(), self.provenance, Patience(self.config.timeout)]
        if sys.stderr.isatty() and self.config.trainer.enable_progress_bar is not False:
            extra.append(RichProgressBar(refresh_rate=20))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = super().instantiate_trainer(
                **({"logger": logger} if logger is not True else {}),
                callbacks=[*(self.config_init.trainer.callbacks or []), *extra],
                plugins=[AtomicCheckpointIO(), *environment, *self._plugins()],
                **kwargs,
            )
        internals.check(trainer)
        self._check_used(trainer)
        if str(self.config.trainer.precision).startswith("16") and trainer.precision == "bf16-mixed":
            print(f"trainer.precision {self.config.trainer.precision}: on a CPU that is bf16-mixed", file=sys.stderr)
        for callback in internals.callbacks(trainer):
            if isinstance(callback, manyviews.evaluation.Evaluation) and callback.folder is None:
                callback.folder = str(self.folder.path)
        internals.callbacks(trainer).append(self.ledger)  # after the checkpoints
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy) and not isinstance(
            trainer.strategy, FullySharded
        ):
            raise ValueError(ONLY_OURS)
        if isinstance(trainer.strategy, DDPStrategy | FullySharded):
            internals.set_timeout(trainer, self.config.startup_timeout)
        return trainer

    def _plugins(self) -> list[Any]:
        given = self.config_init.trainer.plugins or []
        return list(given) if isinstance(given, list | tuple) else [given]

    def _check_used(self, trainer: pl.Trainer) -> None:
        """Raises ValueError for an option of Lightning's that has nothing to act on here."""
        given = self.config.trainer
        for name, instead in UNUSED.items():
            value, usual = given.get(name), USUAL.get(name)
            if value is not None and (type(value), value) != (type(usual), usual):
                raise ValueError(f"trainer.{name} is not used here: {instead}")
        if str(given.get("precision")) in ("64", "64-true", "16-true", "bf16-true", "transformer-engine"):
            raise ValueError(
                f"trainer.precision {given.get('precision')}: weights and batches are float32 here; give bf16-mixed, "
                "16-mixed or 32-true"
            )
        if given.get("gradient_clip_algorithm") is not None and given.get("gradient_clip_val") is None:
            raise ValueError("trainer.gradient_clip_algorithm clips at trainer.gradient_clip_val: give it too")
        if trainer.min_steps is not None and 0 < trainer.max_steps < trainer.min_steps:
            raise ValueError(f"trainer.min_steps {trainer.min_steps} is more than max_steps {trainer.max_steps}")
        if trainer.min_epochs is not None and 0 < (trainer.max_epochs or 0) < trainer.min_epochs:
            raise ValueError(f"trainer.min_epochs {trainer.min_epochs} is more than max_epochs {trainer.max_epochs}")


UNUSED = {
    **dict.fromkeys(
        ("val_check_interval", "limit_val_batches", "check_val_every_n_epoch", "num_sanity_val_steps"),
        "protocols are run by the callback manyviews.evaluation.Evaluation, as often as its every_n_epochs says",
    ),
    **dict.fromkeys(
        ("limit_test_batches", "limit_predict_batches", "inference_mode"),
        "training has no test and no predict loop; the commands on a run evaluate",
    ),
    "overfit_batches": "every epoch takes other samples; give trainer.limit_train_batches, or a small set of shards",
    "log_every_n_steps": "give monitor.every_n_steps",
}
"""Options of Lightning's trainer that have nothing to act on, and what to give instead."""
USUAL = {
    "val_check_interval": 1.0, "limit_val_batches": 1.0, "check_val_every_n_epoch": 1, "num_sanity_val_steps": 0,
    "limit_test_batches": 1.0, "limit_predict_batches": 1.0, "inference_mode": True, "overfit_batches": 0.0,
    "log_every_n_steps": 50,
}  # fmt: skip
"""Their values where nobody set them."""


SECTIONS: dict[str, Any] = {
    "trainer": pl.Trainer,
    "monitor": Monitor,
    "collapse": CollapseAlarm,
    "checkpoints": Checkpoints,
    "stop": StopOnSignal,
    "finite": FiniteGuard,
}
"""What holds arguments of a class in a configuration."""
FIELDS: dict[str, Any] = {
    "model": manyviews.methods.Method,
    "data": pl.LightningDataModule,
}
"""What holds a class with its arguments."""


TOP: dict[str, Any] = {
    "seed_everything": int | bool | None,
    "run": str | None,
    "from": str | None,
    "timeout": float,
    "startup_timeout": float,
    "trust": None,
}
FOLDERS = {"dirpath", "save_dir", "root_dir", "default_root_dir", "log_dir", "cache_dir"}
"""Arguments that name a folder to write into."""


class Parser(LightningArgumentParser):
    """Lightning's, in which a configuration file is what `--config` names, and no value is the name of another file."""

    def add_class_arguments(self, *arguments: Any, **options: Any) -> list[str]:
        """Without files in the place of values."""
        names: list[str] = super().add_class_arguments(*arguments, **{**options, "sub_configs": False})
        return names

    def add_subclass_arguments(self, baseclass: Any, nested_key: str, *_: Any, **options: Any) -> list[str]:
        """Without files in the place of values, which the parser's own method always reads."""
        self.add_argument(f"--{nested_key}", type=baseclass, required=bool(options.get("required")))
        return [nested_key]

    def add_argument(self, *names: Any, **options: Any) -> Any:
        """`--config` reads files by `ConfigFile`."""
        if options.get("action") is ActionConfigFile:
            options["action"] = ConfigFile
        return super().add_argument(*names, **options)


class ConfigFile(ActionConfigFile):
    """Reads a configuration file; one that lies in a run's or an exported folder may be anybody's and is checked."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Checks the file before the parser sees it."""
        check_file(Path(str(value)).expanduser())
        ActionConfigFile.apply_config(parser, cfg, dest, str(Path(str(value)).expanduser()))


def check_file(file: Path) -> None:
    """Checks a `--config` file. One outside of any run's or exported folder is the user's own word.

    Raises:
        ValueError: if it names what is not admitted. OSError: without the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    config, owner = foreign.read_yaml(file), foreign.owner_of(file)
    if isinstance(config, dict) and "config" in config:
        raise ValueError(f"{file}: a configuration names no other file; give --config twice")
    for key in SECTIONS:
        if isinstance(config, dict) and isinstance(config.get(key), str):
            raise ValueError(f"{file}: {key} is {config[key]!r}, the name of a file: write its arguments here")
    if owner is None:
        return
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected keys and values, got {config!r:.100}")
    for key, value in config.items():
        if key in SECTIONS:
            foreign.check_arguments({} if value is None else value, SECTIONS[key], f"{file}: {key}")
        elif key in FIELDS or key in TOP:
            foreign.check(value, FIELDS.get(key, TOP.get(key)), f"{file}: {key}")
        else:
            raise ValueError(f"{file}: unknown key {key!r}; there are {', '.join([*SECTIONS, *FIELDS, *TOP])}")
    if config.get("run") is not None and Path(config["run"]).resolve() != owner.resolve():
        raise ValueError(
            f"{file}: run names {config['run']}, not the folder {owner} that it lies in: take that line out"
        )
    _check_folders(config, owner, f"{file}")


def _check_words(argv: list[str]) -> None:
    """Raises ValueError for `--trainer FILE` and its like, which the parser would read."""
    for word in argv:
        name = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and name in SECTIONS:
            raise ValueError(f"--{name} takes no value: give its arguments, such as those of a --config file")


def _check_folders(value: Any, owner: Path, where: str) -> None:
    """Raises ValueError for an argument of a foreign file that names a folder outside of its own."""
    if isinstance(value, dict):
        for key, child in value.items():
            inside = not isinstance(child, str) or Path(child).resolve().is_relative_to(owner.resolve())
            if key in FOLDERS and not inside:
                raise ValueError(f"{where}: {key} is {child!r}, outside of {owner}: copy the file, without that line")
            _check_folders(child, owner, f"{where}.{key}")
    elif isinstance(value, list):
        for child in value:
            _check_folders(child, owner, where)


def fit(argv: list[str]) -> int:
    """Trains from the command line.

    Exit codes: 0 done, or saved and to be queued again; 1 a fault, 2 bad input, 128 + n stopped by signal n.
    """
    _quiet()
    words = [part for word in argv for part in word.split("=", 1)]
    with foreign.trusting(value for key, value in itertools.pairwise(words) if key == "--trust"):
        return _fit(argv)


def _fit(argv: list[str]) -> int:
    try:
        _check_words(argv)
        cli = FitCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_class=Parser,
            auto_configure_optimizers=False,  # its --optimizer would take the place of the method's
            seed_everything_default=0,
            trainer_defaults={
                "use_distributed_sampler": False,
                "enable_checkpointing": True,
                "enable_progress_bar": sys.stderr.isatty(),
                "enable_model_summary": False,
                "log_every_n_steps": 50,
                "num_sanity_val_steps": 0,
            },
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": "manyviews fit",
                "description": "Trains, or goes on with a run.",
            },
            args=argv,
            run=False,
        )
    except Exception as error:
        print(f"manyviews fit: {explain(error, FitCLI.options)}", file=sys.stderr)
        return 2
    finished = cli.folder.path / FINISHED
    if (steps := _steps_of(finished)) is not None:
        print(f"{cli.folder.path}: finished already, {steps} steps", file=sys.stderr)
        return 0
    if cli.resume_from is not None:
        print(f"{cli.folder.path}: going on from {cli.resume_from.name}", file=sys.stderr)
    if cli.trainer.is_global_zero:
        try:
            cli.folder.lock()
        except ValueError as error:
            print(f"manyviews fit: {error}", file=sys.stderr)
            return 2
        (cli.folder.path / ERROR).unlink(missing_ok=True)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resume_from, weights_only=True)
    except Stopped as stop:
        return _stopped(cli, stop)
    except Exception as error:
        _failed(cli, error)
        return 2 if isinstance(error, ValueError | OSError | FloatingPointError) else 1
    if cli.trainer.is_global_zero:
        print(cli.ledger.summary(), file=sys.stderr)
        if _is_complete(cli.trainer):
            scores = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
            content = {"steps": cli.trainer.global_step, "scores": scores, "goodput": goodput(cli.ledger.all())}
            try:
                write_text(finished, json.dumps(content | provenance(), indent=1) + "\n")
            except OSError as error:
                print(f"manyviews fit: trained and saved, but {finished} not written: {error}", file=sys.stderr)
                return 2
        elif not internals.is_dry(cli.trainer):
            enders = [
                type(part).__name__ for part in internals.callbacks(cli.trainer) if isinstance(part, EarlyStopping)
            ]
            why = " or ".join([*enders, *(["trainer.max_time"] if cli.config.trainer.max_time else [])])
            said = f"ended at step {cli.trainer.global_step}, before max_steps or max_epochs ({why or 'a callback'})"
            print(f"{cli.folder.path}: {said}; the same command goes on", file=sys.stderr)
    return 0


def _steps_of(finished: Path) -> int | None:
    """Steps of a run that has ended; None if it has not, or if the file that says so is damaged."""
    if not finished.exists():
        return None
    try:
        steps = json.loads(finished.read_bytes())["steps"]
        if isinstance(steps, int):
            return steps
        reason = f"steps is {steps!r:.100}"
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        reason = str(error)
    print(f"{finished} is damaged ({reason}): looking at the checkpoints instead", file=sys.stderr)
    return None


def _stopped(cli: FitCLI, stop: Stopped) -> int:
    """What is said and done after a signal. Returns the exit code."""
    marker, now = os.environ.get("MANYVIEWS_REQUEUE"), cli.ledger.now
    asked = stop.saved and stop.signum == signals.WARNING and marker
    # Where a time limit leaves no time to train, the job would be queued for ever.
    requeue = asked and now is not None and cli.trainer.global_step > now.first_step
    if cli.trainer.is_global_zero:
        saved = "saved" if stop.saved else "NOT saved"
        then = f"the same command (fit with --run {cli.folder.path}) goes on"
        if requeue:
            then = "the job asks to be queued again"
        elif asked:
            then = "not queued again, since this start made no step: is the time limit too short?"
        print(f"stopped by {stop} at step {cli.trainer.global_step}, {saved}; {then}", file=sys.stderr)
        if now is not None:
            print(cli.ledger.summary(), file=sys.stderr)
        if requeue and marker:  # the batch script looks for it: containers have no scontrol
            Path(marker).touch()
    cli.trainer.strategy.barrier()  # the first rank that ends with an error has the others killed
    return 0 if requeue else 128 + stop.signum


def _failed(cli: FitCLI, error: Exception) -> None:
    """Says what happened, on which rank. The traceback of the first rank that failed is kept in the run's folder."""
    rank, world = cli.trainer.global_rank, cli.trainer.world_size
    who = f"rank {rank} of {world} on {platform.node()}: " if world > 1 else ""
    print(f"manyviews fit: {who}{error if str(error) else repr(error)}", file=sys.stderr)
    trace = cli.folder.path / ERROR
    if not cli.folder.config_file.exists():  # it never started
        cli.folder.abandon()
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        return
    try:
        with trace.open("x") as f:
            f.write(f"{who}step {cli.trainer.global_step}\n{traceback.format_exc()}")
        print(f"traceback: {trace}", file=sys.stderr)
    except FileExistsError:  # of an earlier rank
        print(f"the first error was that of {trace.read_text().partition(chr(10))[0]}: {trace}", file=sys.stderr)
    except OSError:  # the disk is full, say
        traceback.print_exception(error)


def _is_complete(trainer: pl.Trainer) -> bool:
    """Whether the run reached its end: a time limit or a dry run stops it before."""
    steps_done = 0 < trainer.max_steps <= trainer.global_step
    epochs_done = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch
    return not internals.is_dry(trainer) and (steps_done or epochs_done)


def _quiet() -> None:
    """Lightning's tips and warnings that do not apply here."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*have no `validation_step`.*",
        ".*args parameter is intended to run from within Python.*",
        ".*does not have many workers.*",
        ".*`srun` command is available.*",
        ".*Checkpoint directory .* exists.*",
        ".*LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*resuming from a checkpoint that ended before the epoch.*",  # ours is resumable, bit by bit
        ".*all_gather_into_tensor.*",  # its new name is not in torch 2.11
        "(?s).*does not round-trip.*",  # tuples, which YAML gives back as lists
    ):
        warnings.filterwarnings("ignore", message)
