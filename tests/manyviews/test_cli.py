"""Errors of the command line as text: one short line, the name, the nearest name."""

import re
import shlex
from pathlib import Path

import pytest

from manyviews.cli import main, parser
from manyviews.cli.fit import fit
from manyviews.runs.folder import RunFolder, differences, identity
from tests.recipe import recipe, write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.temprature", "3"],
            "manyviews.methods.SimCLR has no argument 'temprature'; did you mean temperature?",
        ),
        (["--model.temperature", "abc"], "model.temperature: expected float, got abc"),
        (["--modl.x", "1"], "no argument --modl.x; did you mean --model"),
        (["--trainer.max_step", "3"], "no argument --trainer.max_step; did you mean --trainer.max_steps"),
        (["--model.backbone.nrom", "true"], "tests.recipe.Backbone has no argument 'nrom'; did you mean norm?"),
        (["--data.views.strenght", "3"], "viewshards.views.SimCLR has no argument 'strenght'; did you mean strength?"),
        (["--monitor.every_n_step", "3"], "did you mean --monitor.every_n_steps"),
        (["--data.root", "/nowhere"], "/nowhere/manifest.json: not there. Make shards with `viewshards pack SOURCE"),
        (["--data.lanes", "7"], "global_batch_size (64) must be a multiple of lanes (7)"),
        (
            [
                "--trainer.callbacks",
                "[{class_path: manyviews.evaluation.Evaluation, init_args: {protocols: [{class_path: manyviews.evaluation.Retrieval}]}}]",
            ],
            "Retrieval needs samples with 2 or more natural views, these have 1",
        ),
        (["--checkpoints.keep_last", "0"], "keep_last must be at least 1, got 0"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_arguments(digits, tmp_path, capsys, arguments, message):
    config = write(tmp_path / "recipe.yaml", recipe(digits))
    assert fit(["--config", str(config), "--run", str(tmp_path / "run"), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("manyviews fit: ")
    assert not (tmp_path / "run/config.yaml").exists()  # a run that never started does not claim the folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__temprature": 1}, "has no argument 'temprature'; did you mean temperature?"),
        ({"trainer__max_step": 1}, "no key 'trainer.max_step'; did you mean trainer.max_steps"),
        ({"trainr": {"max_steps": 1}}, "no key 'trainr.max_steps'; did you mean trainer.max_steps"),
        ({"model__backbone": {"class_path": "manyviews.backbones.ConvNt"}}, "manyviews.backbones has no 'ConvNt'; did you mean ConvNet?"),
    ],
)  # fmt: skip
def test_files(digits, tmp_path, capsys, change, message):
    config = write(tmp_path / "recipe.yaml", recipe(digits, **change))
    assert fit(["--config", str(config), "--run", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_missing_things(tmp_path, capsys):
    assert fit(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    assert fit(["--run", str(tmp_path)]) == 2
    assert "missing; give --config RECIPE.yaml" in capsys.readouterr().err
    assert main(["knn", "--checkpoint", str(tmp_path / "x.ckpt")]) == 2
    assert "x.ckpt: no such checkpoint" in capsys.readouterr().err
    write(tmp_path / "checkpoints/step-00000001.ckpt", {})
    assert main(["embed", "--run", str(tmp_path), "--out", "x.csv"]) == 2
    assert "ends in .npz or .parquet" in capsys.readouterr().err
    assert main(["prob"]) == 2
    assert "prob" in capsys.readouterr().err


def test_a_run_folder_is_one_experiment(tmp_path):
    folder, config = RunFolder(tmp_path / "run"), {"model": {"t": 1}, "trainer": {"devices": 1, "max_steps": 5}}
    folder.check(config)
    folder.write(config)
    folder.check({**config, "trainer": {"devices": 8, "max_steps": 5}, "monitor": {"every_n_steps": 3}})
    with pytest.raises(ValueError, match=r"model.t: 1 there, 2 asked for"):
        folder.check({**config, "model": {"t": 2}})
    assert differences(identity({"a": (1, 2)}), identity({"a": [1, 2]})) == []


ROOT = Path(__file__).parents[2]
PRINTED = [
    found[1] or found[2]
    for page in ("README.md", "slurm/README.md")
    for found in re.finditer(
        r"^    manyviews (.+)$|`manyviews ([a-z]+ [^`]+)`", (ROOT / page).read_text().replace("\\\n", " "), re.M
    )
]


@pytest.mark.parametrize("line", [line for line in PRINTED if not line.startswith("fit ")])
def test_commands_are_printed_as_they_are_taken(line):
    """Every command of the two pages but `fit`, whose recipes are read in test_recipes.py."""
    arguments, rest = parser().parse_known_args(shlex.split(line, comments=True))
    assert not rest or arguments.command in ("multistage", "submit")  # whose rest goes to fit
