"""What is given is used, or refused with a word: options, metrics, loggers, through the command."""

import json
import signal

import pytest
import torch
import yaml

from manyviews.cli import main
from manyviews.cli.fit import fit
from tests.recipe import recipe, scalars, weights, write

pytestmark = pytest.mark.slow
KNN = {"class_path": "manyviews.evaluation.KNN", "init_args": {"k": [5], "temperature": [0.1]}}


def evaluation(every_n_epochs=1):
    return {
        "class_path": "manyviews.evaluation.Evaluation",
        "init_args": {"protocols": [KNN], "every_n_epochs": every_n_epochs},
    }


def train(tmp_path, config, *arguments, name="run"):
    return fit(["--config", str(write(tmp_path / "recipe.yaml", config)), "--run", str(tmp_path / name), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoints.mode", "maximum"], "maximum"),
        (["--checkpoints.monitor", "val/knn5"], "nothing is evaluated: add manyviews.evaluation.Evaluation"),
        (["--checkpoints.monitor", "representation/rankme"], "there is no 'representation/rankme'; did you mean representation/rankme_features"),
        (["--optimizer", "SGD", "--optimizer.lr", "0.1"], "no argument --optimizer; give model.training.optimizer"),
        (["--lr_scheduler", "CosineAnnealingLR"], "no argument --lr_scheduler; give model.training.schedule"),
        (["--trainer.val_check_interval", "0.5"], "trainer.val_check_interval is not used here: protocols are run by"),
        (["--trainer.limit_val_batches", "0"], "trainer.limit_val_batches is not used here"),
        (["--trainer.overfit_batches", "2"], "trainer.overfit_batches is not used here: every epoch takes other"),
        (["--trainer.log_every_n_steps", "5"], "trainer.log_every_n_steps is not used here: give monitor.every_n_steps"),
        *((["--trainer." + name, value], f"trainer.{name} is not used here") for name, value in (
            ("limit_test_batches", "3"), ("limit_predict_batches", "3"), ("inference_mode", "false"),
            ("val_check_interval", "1"),
        )),
        *((["--trainer.precision", value], f"trainer.precision {value}: weights and batches are float32") for value in (
            "64-true", "bf16-true",
        )),
        (["--trainer.min_epochs", "50", "--trainer.max_epochs", "2"], "trainer.min_epochs 50 is more than max_epochs 2"),
        (["--trainer.gradient_clip_algorithm", "value"], "trainer.gradient_clip_val: give it too"),
        (["--trainer.min_steps", "50", "--trainer.max_steps", "2"], "trainer.min_steps 50 is more than max_steps 2"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches 0.0 leaves none of"),
        (["--trainer.limit_train_batches", "0.001"], "trainer.limit_train_batches 0.001 leaves none of"),
        (["--data.window", "0"], "data.window: expected 1 or more, got 0"),
        (["--data.lanes", "0"], "data.lanes: expected 1 or more, got 0"),
        (["--data.max_broken", "7"], "data.max_broken: expected a share, in [0, 1], got 7"),
        (["--collapse.every_n_steps", "0"], "collapse.every_n_steps: expected 1 or more, got 0"),
        (["--monitor.every_n_steps", "0"], "monitor.every_n_steps: expected 1 or more, got 0"),
        (["--checkpoints.every_n_epochs", "-1"], "every_n_epochs -1: 0 or more"),
        (["--data.text", "viewshards.Captions"], "data.text is given, and SimCLR reads no texts: leave it out"),
    ],
)  # fmt: skip
def test_refused_at_the_start(digits, tmp_path, capsys, arguments, message):
    assert train(tmp_path, recipe(digits), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))


def test_a_mistaken_metric_costs_no_training(digits, tmp_path, capsys):
    """The word of the printed lines is told at the first step; what can only be told later leaves a checkpoint."""
    assert train(tmp_path, recipe(digits, checkpoints__monitor="loss")) == 2
    assert "there is no 'loss'; did you mean train/loss" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))
    config = recipe(digits, checkpoints__monitor="train/los", checkpoints__every_n_steps=0)
    assert train(tmp_path, config, name="later") == 2
    assert [p.name for p in (tmp_path / "later/checkpoints").glob("*.ckpt")] == ["step-00000022.ckpt"]


def test_a_metric_that_no_protocol_gives_is_refused_at_the_first_evaluation(digits, tmp_path, capsys):
    config = recipe(digits, trainer__callbacks=[evaluation()], checkpoints__monitor="knn5/val")
    assert train(tmp_path, config) == 2
    assert "there is no 'knn5/val'; did you mean val/knn5" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_is_the_best(digits, tmp_path, mode):
    """By a score and by a reading, the largest and the smallest: what best.ckpt is a copy of."""
    for number, monitor in enumerate(("val/knn5", "representation/rankme_features")):
        config = recipe(
            digits, trainer__callbacks=[evaluation()], trainer__max_steps=66, checkpoints__keep_last=20,
            checkpoints__every_n_steps=22, checkpoints__monitor=monitor, checkpoints__mode=mode, monitor__every_n_steps=1,
        )  # fmt: skip
        assert train(tmp_path, config, name=f"run{number}") == 0
        run = tmp_path / f"run{number}"
        values = {step: value for step, value in scalars(run)[monitor] if step % 22 == 0}
        best = (max if mode == "max" else min)(
            values, key=lambda step: (values[step], -step if mode == "max" else step)
        )
        kept = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
        assert len(values) == 3 and kept["global_step"] == best, values


def test_limited_epochs_are_planned_for(digits, tmp_path):
    """Three epochs of four batches: the rate ends with the run, and a resume in the middle changes nothing."""
    changes = {"max_epochs": 3, "limit_train_batches": 4, "max_steps": -1}
    config = recipe(
        digits,
        model__training={
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.002}},
            "schedule": {"warmup_steps": 0, "scaling": "none"},
        },
        monitor__every_n_steps=1,
    )
    config["trainer"] |= changes
    assert train(tmp_path, config) == 0
    rates = dict(scalars(tmp_path / "run")["train/lr"])
    assert len(rates) == 12 and rates[12] < 1e-9 and rates[6] == pytest.approx(0.001)
    for step in (2, 4):
        once = {
            "class_path": "tests.recipe.StopInside",
            "init_args": {"step": step, "once": str(tmp_path / f"once{step}")},
        }
        config["trainer"]["callbacks"] = [once]
        for _ in range(2):
            assert train(tmp_path, config, name=f"again{step}") == 0
        whole, again = weights(tmp_path / "run"), weights(tmp_path / f"again{step}")
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_stop_waits_for_the_step_of_accumulated_batches(digits, tmp_path):
    """A signal between two steps: what was accumulated is in the step, and a resume is bit-equal."""
    config = recipe(digits, trainer__max_steps=4, checkpoints__every_n_steps=3)
    config["model"] = {
        "class_path": "manyviews.methods.SimSiam",
        "init_args": {
            "backbone": config["model"]["init_args"]["backbone"], "projector_hidden": 16, "predictor_hidden": 8,
            "training": {"schedule": {"warmup_epochs": 0, "scaling": "none"}},
        },
    }  # fmt: skip
    config["trainer"]["accumulate_grad_batches"] = 4
    assert train(tmp_path, config) == 0
    once = {"class_path": "tests.recipe.Interrupt", "init_args": {"step": 2, "once": str(tmp_path / "once")}}
    config["trainer"]["callbacks"] = [once]
    assert train(tmp_path, config, name="again") == 128 + signal.SIGTERM
    assert max(p.name for p in (tmp_path / "again/checkpoints").glob("step-*.ckpt")) == "step-00000002.ckpt"
    assert train(tmp_path, config, name="again") == 0
    whole, again = weights(tmp_path / "run"), weights(tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_two_settings_of_a_protocol_are_both_kept(digits, tmp_path, capsys):
    other = {"class_path": "manyviews.evaluation.KNN", "init_args": {"k": [3], "temperature": [0.1]}}
    cooler = {"class_path": "manyviews.evaluation.KNN", "init_args": {"k": [5], "temperature": [0.01]}}
    config = recipe(digits, trainer__max_steps=22, trainer__callbacks=[evaluation()])
    config["trainer"]["callbacks"][0]["init_args"]["protocols"] = [KNN, other, cooler]
    assert train(tmp_path, config) == 0
    found = scalars(tmp_path / "run")
    assert {"val/knn3", "val/knn5"} <= found.keys()
    assert sum(name.startswith("val/knn-") and name.endswith("/knn5") for name in found) == 1
    assert len(list((tmp_path / "run/evaluations").glob("knn-*.json"))) == 3
    config["trainer"]["callbacks"][0]["init_args"]["protocols"] = [KNN, KNN]
    assert train(tmp_path, config, name="twice") == 2
    assert "stands there twice with the same settings" in capsys.readouterr().err


def test_what_a_command_cannot_mean_is_refused(digits, tmp_path, capsys):
    assert train(tmp_path, recipe(digits, trainer__max_steps=1)) == 0
    run = ["--trust", "tests.recipe", "--run", str(tmp_path / "run")]
    for arguments, message in (
        (["knn", *run, "--split", "train"], "KNN learns from the split 'train' and is measured on 'train'"),
        (["report", *run, "--split", "train"], "KNN learns from the split 'train'"),
        (["report", *run, "--bank", "openai"], "--bank is of methods that read texts, not of SimCLR"),
        (["composition", *run, "--aro", "x.json", "--split", "train"], "give one of the two"),
        (["mine", *run, "--kind", "owners", "--m", "0", "--out", "x.npz"], "--m 0: expected 1 or more"),
        (["knn", *run, "--k", "5", "5", "--temperature", "0.1", "1"], "each may stand there once"),
        (["retrieve", *run, "--model", "ViT-B-32"], "--model says what a file of --pretrained is"),
        (["composition", *run, "--images", "/nowhere"], "--images and --exclude are of ARO's files"),
        (["transfer", *run, "--adapter", "none", "--sigma", "5"], "--adapter none adds none"),
        (["mine", *run, "--m", "9", "--out", "x.npz"], "--m is of --kind owners"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert main(["cost", *run, "--split", "train"]) == 0  # which learns nothing
    assert main(["probe", *run, "--epochs", "1", "--seeds", "1", "--json", str(tmp_path / "p.json")]) == 0
    kept = [json.loads(path.read_text())["protocol"]["protocol"] for path in sorted(tmp_path.glob("p*.json"))]
    assert kept == ["LogisticRegression", "LinearProbe"]


def test_a_time_limit_is_told(digits, tmp_path, capsys):
    config = recipe(digits, trainer__max_steps=100000)
    config["trainer"]["max_time"] = "00:00:00:01"
    config["trainer"] |= {"limit_val_batches": 1.0, "val_check_interval": 1.0}  # as Lightning has them
    assert train(tmp_path, config) == 0
    assert "before max_steps or max_epochs (trainer.max_time); the same command goes on" in capsys.readouterr().err


def test_who_stopped_early_is_told(digits, tmp_path, capsys):
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/knn5", "patience": 1, "mode": "min", "min_delta": 9.0, "check_on_train_epoch_end": True},
    }  # fmt: skip
    config = recipe(digits, trainer__callbacks=[evaluation(), stop], trainer__max_steps=1000)
    assert train(tmp_path, config) == 0
    assert "before max_steps or max_epochs (EarlyStopping); the same command goes on" in capsys.readouterr().err


def test_half_precision_on_a_cpu_is_said(digits, tmp_path, capsys):
    assert train(tmp_path, recipe(digits, trainer__max_steps=1, trainer__precision="16-mixed")) == 0
    assert "trainer.precision 16-mixed: on a CPU that is bf16-mixed" in capsys.readouterr().err


def test_all_loggers_get_all_and_results_lie_in_the_run(digits, tmp_path):
    """Two of TensorBoard and one that knows no folder."""
    loggers = [
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / name)}}
        for name in ("first", "second")
    ]
    loggers.append({"class_path": "tests.recipe.Heard", "init_args": {"path": str(tmp_path / "heard.json")}})
    config = recipe(digits, trainer__callbacks=[evaluation()], trainer__logger=loggers, trainer__max_steps=22)
    assert train(tmp_path, config) == 0
    found = [scalars(next((tmp_path / name).rglob("version_0"))) for name in ("first", "second")]
    assert found[0] == found[1] and {"val/knn5", "train/loss"} <= found[0].keys()
    assert {"val/knn5", "train/loss", "representation/rankme_features"} <= set(
        json.loads((tmp_path / "heard.json").read_text())
    )
    assert [p.suffix for p in sorted((tmp_path / "run/evaluations").iterdir())] == [".json"]


def test_tensorboard_shows_the_configuration_and_no_empty_metric(digits, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path, recipe(digits, trainer__max_steps=3)) == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert "hp_metric" not in events.Tags()["scalars"]
    (shown,) = events.Tensors("config/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```")) == written


def test_a_method_of_the_users_own_that_cannot_be_written_down_is_refused(digits, tmp_path, capsys):
    config = recipe(digits)
    config["model"]["class_path"] = "tests.recipe.Unwritable"
    assert train(tmp_path, config) == 2
    assert "model.made: its default (" in capsys.readouterr().err
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_run_begins_with_another_ones_weights_and_says_so(digits, tmp_path, capsys, caplog):
    """Other data, schedule and head: what fits is taken, the rest is told, and run.json names the parent."""
    assert train(tmp_path, recipe(digits, trainer__max_steps=3), name="parent") == 0
    config = recipe(digits, trainer__max_steps=2, model__projector_out=8, data__seed=99)
    before = weights(tmp_path / "parent")
    frozen = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    config["model"]["init_args"]["training"]["optimizer"] = frozen
    assert train(tmp_path, config, "--from", str(tmp_path / "parent"), name="child") == 0
    said = caplog.text
    assert "begins with" in said and "step-00000003.ckpt" in said and "new: projector.3" in said
    after = weights(tmp_path / "child")
    assert all(torch.equal(before[name], value) for name, value in after.items() if name.startswith("backbone."))
    parent = json.loads((tmp_path / "child/run.json").read_text())["parent"]
    assert parent["step"] == 3 and parent["run"] == str(tmp_path / "parent") and len(parent["sha256"]) == 64
    assert parent["sha256"] in (tmp_path / "parent/checkpoints/step-00000003.ckpt.sha256").read_text()
    assert train(tmp_path, config, "--from", str(tmp_path / "parent/checkpoints"), name="same") == 0
    capsys.readouterr()
    for value, message in ((tmp_path / "none", "no such run or checkpoint"), (tmp_path, "no whole checkpoint")):
        assert train(tmp_path, config, "--from", str(value), name="other") == 2
        assert message in capsys.readouterr().err
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "published.pth")
    assert train(tmp_path, config, "--from", str(tmp_path / "published.pth"), name="other") == 2
    assert "published weights are given as model.backbone.checkpoint" in capsys.readouterr().err
    config["model"]["init_args"]["backbone"]["init_args"] = {"norm": True}
    assert train(tmp_path, config, "--from", str(tmp_path / "parent"), name="other") == 2
    assert "its backbone is another one; these differ: backbone.body.1" in capsys.readouterr().err


def test_a_run_with_published_weights_is_evaluated_and_resumed_without_their_file(digits, tmp_path, capsys, caplog):
    backbone = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8]}}
    config = recipe(digits, trainer__max_steps=2, checkpoints__every_n_steps=1)
    config["model"]["init_args"]["backbone"] = backbone
    once = {"class_path": "tests.recipe.StopInside", "init_args": {"step": 1, "once": str(tmp_path / "once")}}
    config["trainer"]["callbacks"] = [once]
    assert train(tmp_path, config, name="first") == 0
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights/published.ckpt"
    (tmp_path / "first/checkpoints/step-00000001.ckpt").rename(file)
    (tmp_path / "once").unlink()
    backbone["init_args"]["checkpoint"] = str(file)
    assert train(tmp_path, config) == 0
    assert "tensors of state_dict.backbone used" in caplog.text
    held = file.read_bytes()
    file.unlink()
    assert train(tmp_path, config) == 0 and (tmp_path / "run/finished.json").exists()
    assert main(["knn", "--run", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert main(["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    report = ["report", "--run", str(tmp_path / "run")]
    assert main(report) == 0
    assert "no row of the weights that training began with" in capsys.readouterr().err
    file.write_bytes(held)
    assert main(report) == 0
    scores = json.loads(next((tmp_path / "run/evaluations").glob("report-step-*.json")).read_text())["scores"]
    assert [*scores] == ["trained encoder", "weights it began with", "untrained encoder", "raw pixels"]


OWN = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.width, self.body = width, nn.Linear(192, width)

    def forward(self, images):
        return self.body(images.flatten(1))

class Widthless(nn.Module):
    def forward(self, images):
        return images.flatten(1)
"""


def test_a_module_beside_the_recipe_or_here_is_found_and_shadows_nothing(digits, tmp_path):
    """By a process that starts elsewhere; the same name out of the run needs --trust."""
    from tests.process import program

    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes/mymodels.py").write_text(OWN)
    (tmp_path / "recipes/json.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "recipes/torch.py").write_text("raise SystemExit('shadowed')")
    config = recipe(digits, trainer__max_steps=2)
    config["model"]["init_args"]["backbone"] = {"class_path": "mymodels.Mine"}
    file = write(tmp_path / "recipes/recipe.yaml", config)
    done = program("fit", "--config", file, "--run", tmp_path / "run", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    refused = program("knn", "--run", tmp_path / "run", cwd=tmp_path / "recipes")
    assert refused.returncode == 2 and "--trust mymodels" in refused.stderr
    (tmp_path / "recipes/json.py").unlink(), (tmp_path / "recipes/torch.py").unlink()
    trusted = program("knn", "--run", tmp_path / "run", "--trust", "mymodels", cwd=tmp_path / "recipes")
    assert trusted.returncode == 0, trusted.stderr
    lost = program(
        "fit",
        "--config",
        file,
        "--run",
        tmp_path / "b",
        "--model.backbone",
        "mymodels.Widthless",
        cwd=tmp_path / "elsewhere",
    )
    assert lost.returncode == 2 and "Widthless is no backbone: one needs an attribute `width`" in lost.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.precision", "fp16"], "trainer.precision: expected one of"),
        (["--data.views.size", "-3"], "size must be at least 1, got -3"),
        (["--data.global_batch_size", "1", "--data.lanes", "1"], "global_batch_size is 1, and NTXent compares the samples of a batch"),
        (["--model.backbone", "manyviews.backbones.TimmBackbone", "--model.backbone.name", "vit_tiny_patch16_224"], "cannot take views of 3 x 8 x 8"),
        (["--model.backbone", "manyviews.backbones.TimmBackbone", "--model.backbone.name", "beit_base_patch16_224"], "data.views, those of the backbone of model.backbone (image_size, patch_size"),
    ],
    ids=lambda x: x[1] if isinstance(x, list) else "",
)  # fmt: skip
def test_what_does_not_fit_is_told_at_the_start(digits, tmp_path, capsys, arguments, message):
    assert train(tmp_path, recipe(digits), *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "step " not in said and not (tmp_path / "run").exists()


def test_a_short_run_is_read_and_ends_with_a_reading(digits, tmp_path):
    config = recipe(digits, trainer__max_steps=7, monitor__every_n_steps=50)
    assert train(tmp_path, config) == 0
    curves = scalars(tmp_path / "run")
    assert [step for step, _ in curves["representation/rankme_features"]] == [1, 2, 3, 4, 5, 6, 7]
    assert train(tmp_path, recipe(digits, trainer__max_steps=33, monitor__every_n_steps=50), name="other") == 0
    assert [step for step, _ in scalars(tmp_path / "other")["train/lr"]][-2:] == [30, 33]


def test_a_start_killed_before_its_first_reading_counts(digits, tmp_path):
    from tests.process import Started, program

    slow = {"class_path": "tests.recipe.Slow", "init_args": {"seconds": 0.5}}
    config = recipe(digits, trainer__max_steps=3, monitor__every_n_steps=1000)
    file = write(tmp_path / "recipe.yaml", config | {"trainer": config["trainer"] | {"callbacks": [slow]}})
    process = Started("fit", "--config", file, "--run", tmp_path / "run")
    process.await_((tmp_path / "run/attempts/0001.json").exists)
    process.send(9)
    process.end()
    done = program("fit", "--config", file, "--run", tmp_path / "run", "--trust", "tests.recipe")
    assert done.returncode == 0 and "starts: 2" in done.stderr, done.stderr
