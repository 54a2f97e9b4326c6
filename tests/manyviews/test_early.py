"""What is mistaken in names and files is told before anything heavy is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from manyviews.cli import early, main, source
from tests.process import environment
from tests.recipe import recipe, write

HEAVY = ("torch", "lightning", "torchvision", "sklearn", "matplotlib", "scipy", "timm", "open_clip", "numpy")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def imported(*arguments):
    """What a command imported of the heavy ones, its exit code and what it said."""
    code = (
        "import sys, json\nfrom manyviews.cli import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
        f"print(json.dumps([code, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment()
    )
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prob"], "no command 'prob'; did you mean probe?"),
        (["knn", "--run", "nowhere"], "nowhere: no such run"),
        (["embed", "--checkpoint", "none.ckpt", "--out", "x.npz"], "none.ckpt: no such checkpoint"),
        (["fit", "--config", "none.yaml"], "none.yaml: no such file"),
        (["fit", "--config", "{recipe}", "--modl.temperature", "3"], "no argument --modl.temperature; did you mean --model"),
        (["fit", "--config", "{recipe}", "--trainer.max_step", "3"], "no argument --trainer.max_step; did you mean --trainer.max_steps"),
        (["fit", "--config", "{recipe}", "--model.temprature", "3"], "manyviews.methods.SimCLR has no argument 'temprature'; did you mean temperature?"),
        (["fit", "--config", "{recipe}", "--model.temperature", "abc"], "model.temperature: expected float, got abc"),
        (["fit", "--config", "{recipe}", "--model", "SimCLRR"], "model: no class 'SimCLRR' in manyviews.methods; did you mean SimCLR"),
        (["fit", "--config", "{recipe}", "--model.backbone", "manyviews.backbones.ConvNt"], "manyviews.backbones has no 'ConvNt'; did you mean ConvNet"),
        (["fit", "--config", "{recipe}", "--data.views.strenght", "3"], "viewshards.views.SimCLR has no argument 'strenght'; did you mean strength?"),
        (["fit", "--config", "{recipe}", "--checkpoints.keep", "3"], "no argument --checkpoints.keep; did you mean --checkpoints.keep_last"),
        (["fit", "--config", "{recipe}", "--model.training.optimiser", "SGD"], "model.training has no option 'optimiser'; did you mean optimizer?"),
        (["fit", "--config", "{recipe}", "--model.training.schedule.warmup", "3"], "model.training.schedule has no option 'warmup'; did you mean warmup_"),
        (["fit", "--config", "{recipe}", "--model.training.grad_cache", "x"], "model.training.grad_cache: expected int, got x"),
        (["fit", "--config", "{recipe}", "--optimizer", "SGD"], "give model.training.optimizer"),
    ],
    ids=lambda x: "-".join(x[-2:]) if isinstance(x, list) else "",
)  # fmt: skip
def test_nothing_heavy_is_imported_for_a_mistake(tmp_path, arguments, message):
    file = write(tmp_path / "recipe.yaml", recipe(tmp_path))
    code, heavy, said, _ = imported(*(str(file) if a == "{recipe}" else a for a in arguments))
    assert code == 2 and message in said and len(said.strip().splitlines()) == 1
    assert heavy == []


@pytest.mark.slow
def test_help_of_a_class_is_its_own(tmp_path):
    code, heavy, _, shown = imported("fit", "--model.help", "manyviews.methods.SimCLR")
    assert code == 0 and heavy == []
    lines = shown.splitlines()
    assert "  --model.temperature: float = 0.1" in lines and len(lines) < 45
    assert "  --model.training.schedule.warmup_epochs: float" in lines


RECIPES = [p for p in sorted(EXPERIMENTS.glob("*/*.yaml")) if p.parent.name not in ("claims", "leaderboard", "sweeps")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_recipe_is_refused(path):
    early.check_fit(["--config", str(path)])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.backbone", "timm.create_model", "--model.backbone.x", "3"],  # only an import can tell
        ["--model.backbone={class_path: tests.recipe.Backbone, init_args: {dropout: 0.2}}"],
        ["--trainer.callbacks+={class_path: manyviews.evaluation.Evaluation}"],
        ["--trainer.callbacks.every_n_epochs", "3"],
        ["--model.init_args.temperature", "3e-1"],
        ["--model.training.optimizer.lr", "3"],
        ["--seed_everything=3", "--print_config"],
        ["--model", "manyviews.methods.BYOL"],
        ["--model.class_path", "manyviews.methods.BYOL"],  # the old one's arguments go
        ["--model.backbone.class_path", "manyviews.backbones.ConvNet", "--model.backbone.widths", "[4, 8]"],
        ["--trainer.max_steps", "0x10"],
        ["--model.temperature", ".inf"],
        ["--model.temperature", "0.2 # as in the paper"],
        ["--model", "class_path: SimCLR"],
        ["--model", " {class_path: SimCLR}"],
        ["--model.backbone", "itertools.count", "--model.backbone.start", "3"],
        ["--model.backbone", "__main__.X", "--model.backbone.start", "3"],
        ["--model.backbone", "_json.Scanner", "--model.backbone.x", "3"],  # of a library that is no source
    ],
)
def test_what_may_be_right_is_left_to_the_parser(tmp_path, arguments):
    early.check_fit(["--config", str(write(tmp_path / "r.yaml", recipe(tmp_path))), *arguments])


def test_dotted_keys_of_a_file_are_nested_ones(tmp_path):
    config = recipe(tmp_path)
    config["trainer.max_epochs"] = 3
    config["model"]["init_args"] |= {
        "backbone.class_path": "manyviews.backbones.ConvNet",
        "backbone.init_args": {"widths": [4]},
    }
    early.check_fit(["--config", str(write(tmp_path / "r.yaml", config))])
    config["trainer.max_epoch"] = 3
    with pytest.raises(ValueError, match="no key 'trainer.max_epoch'; did you mean trainer.max_epochs"):
        early.check_fit(["--config", str(write(tmp_path / "r.yaml", config))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1, 2", "not readable as YAML .*line 1"),
        ("- model\n- data\n", "expected sections with keys, got list"),
        ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*{n}, *{n}, *{n}, *{n}]\n" for i, n in enumerate(["a", *(f"b{i}" for i in range(20))])), "more than 1,000,000 values"),
        ("[" * 50_000, "not readable as YAML"),
    ],
    ids=["syntax", "list", "aliases", "deep"],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_told_at_once(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"own.yaml: {message}"):
        early.check_fit(["--config", str(tmp_path / "own.yaml")])


def test_a_date_is_a_text(tmp_path):
    early.check_fit(["--config", str(write(tmp_path / "r.yaml", recipe(tmp_path) | {"run": "x"}))])
    (tmp_path / "d.yaml").write_text("run: 2026-11-27\n")
    early.check_fit(["--config", str(tmp_path / "d.yaml")])


@pytest.mark.slow
def test_a_module_of_ones_own_is_looked_at_beside_the_recipe_too(tmp_path):
    (tmp_path / "mine.py").write_text("class Net:\n    def __init__(self, width: int = 3): pass\n")
    file = write(tmp_path / "r.yaml", recipe(tmp_path))
    config = yaml.safe_load(file.read_text())
    config["model"]["init_args"]["backbone"] = {"class_path": "mine.Net"}
    code, heavy, said, _ = imported(
        "fit", "--config", write(tmp_path / "own.yaml", config), "--model.backbone.widht", "4"
    )
    assert code == 2 and "mine.Net has no argument 'widht'; did you mean width?" in said and heavy == []


OWN = {
    "latin": "# -*- coding: latin-1 -*-\nclass Mine:\n    def __init__(self, depth: int = 1): '\u00e9'\n".encode(
        "latin-1"
    ),
    "broken": b"class Mine:\n    def __init__(self, widths\n",
    "over": (
        b"from typing import overload\nclass Mine:\n    @overload\n    def __init__(self, widths: int): ...\n"
        b"    def __init__(self, depth: int = 1, widths: int = 2): pass\n"
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_modules_of_any_kind_are_left_to_the_import(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}_own.py").write_bytes(OWN[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--model.backbone", f"{name}_own.Mine", "--model.backbone.depth", "3"]
    early.check_fit(["--config", str(write(tmp_path / "r.yaml", recipe(tmp_path))), *arguments])


def test_sections_are_those_of_the_command():
    from manyviews.cli import fit

    assert {name: f"{made.__module__}.{made.__name__}" for name, made in fit.SECTIONS.items()} == early.SECTIONS
    assert set(fit.FIELDS) == set(early.CLASSES) and set(fit.TOP) <= set(early.SINGLE)


def test_arguments_are_those_of_the_classes():
    """Of every exported class whose source tells them."""
    import importlib
    from inspect import signature

    told = 0
    for package in source.PACKAGES:
        for name, path in source.exported(package).items():
            found = source.known(path)
            made = getattr(importlib.import_module(package), name, None)
            if found is not None and found.arguments is not None and isinstance(made, type):
                assert list(found.arguments) == list(signature(made).parameters), path
                told += 1
    assert told > 120


def test_recipes_are_listed_and_printed(capsys):
    assert main(["recipe"]) == 0
    listed = capsys.readouterr().out
    assert "simclr/photos" in listed and "claims" not in listed
    assert main(["recipe", "simclr/photos"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].endswith("SimCLR")
    assert main(["recipe", "simclr/photo"]) == 2
    assert "no recipe 'simclr/photo'; did you mean simclr/photos" in capsys.readouterr().err


def test_a_file_of_two_sections_and_one_mistake(tmp_path, capsys):
    config = recipe(tmp_path)
    config["trainer"]["max_step"] = 3
    assert main(["fit", "--config", str(write(tmp_path / "r.yaml", config))]) == 2
    assert "no key 'trainer.max_step'; did you mean trainer.max_steps" in capsys.readouterr().err
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"trainr": {"max_steps": 1}}))
    assert main(["fit", "--config", str(tmp_path / "r.yaml")]) == 2
    assert "no key 'trainr.max_steps'; did you mean trainer.max_steps" in capsys.readouterr().err
