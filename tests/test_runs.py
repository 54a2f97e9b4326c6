"""Runs from the command line: trained, killed, resumed, stopped, refused; the curves read back."""

import json
import signal
import time

import pytest
import torch

from manyviews.runs import newest_whole
from tests.process import Started, program, run
from tests.recipe import recipe, scalars, weights, write

TRUST = ("--trust", "tests.recipe")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """One run from start to end, which the disturbed ones are compared with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = program("fit", "--config", write(folder / "recipe.yaml", recipe(digits)), "--run", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start_and_signal(folder, config, number, step, extra=(), group=False):
    """Starts a run, sends it (or its group) a signal once its checkpoint of `step` is there; returns it, ended."""
    arguments = ["fit", "--config", write(folder / "recipe.yaml", config), "--run", folder / "run", *extra]
    process = Started(*arguments, group=group)
    process.await_((folder / f"run/checkpoints/step-{step:08d}.ckpt").exists)
    time.sleep(0.05)
    process.send(number)
    return process.end(120)


def test_a_run_leaves_everything_one_needs(undisturbed):
    names = {p.name for p in undisturbed.iterdir()}
    assert {"config.yaml", "run.json", "finished.json", "checkpoints"} <= names
    provenance = json.loads((undisturbed / "run.json").read_text())
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0] and "git" in provenance
    assert {p.name for p in (undisturbed / "checkpoints").iterdir()} == {
        f"step-{n:08d}.ckpt{beside}" for n in (40, 50, 60) for beside in ("", ".sha256")
    }


def test_curves_are_in_tensorboard(undisturbed):
    curves = scalars(undisturbed)
    expected = {
        "train/loss", "train/lr", "train/grad_norm", "train/temperature", "train/skipped_steps",
        "similarity/positive_mean", "similarity/negative_mean",
        "representation/alignment", "representation/uniformity", "representation/rankme_features",
        "representation/rankme_projections", "representation/spread_projections",
        "speed/images_per_second", "speed/data_wait_share", "data/replaced_samples",
    }  # fmt: skip
    assert expected <= curves.keys()
    assert [step for step, _ in curves["train/loss"]] == [1, *range(5, 61, 5)]
    losses = [value for _, value in curves["train/loss"]]
    assert losses[-1] < losses[0] - 0.3  # it learns
    assert 0 <= curves["speed/data_wait_share"][-1][1] <= 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(undisturbed))
    events.Reload()
    assert {"pictures/views", "pictures/similarity", "pictures/neighbours"} <= set(events.Tags()["images"])
    assert {"similarity/positive", "similarity/negative"} <= set(events.Tags()["histograms"])


@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_and_resume_is_bit_equal(digits, tmp_path, undisturbed, workers):
    """Killed at some step of the second epoch; weights and every reading equal those of the undisturbed run."""
    config = recipe(digits, data__workers=workers)
    process = start_and_signal(tmp_path, config, signal.SIGKILL, 30)
    assert process.returncode == -signal.SIGKILL
    again = program("fit", "--config", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert again.returncode == 0 and "going on from step-" in again.stderr
    assert equal(weights(tmp_path / "run"), weights(undisturbed))
    ours, theirs = scalars(tmp_path / "run"), scalars(undisturbed)
    for name in theirs:
        if not name.startswith("speed/"):
            assert ours[name] == theirs[name], name  # no step twice, none missing, no seam


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_exactly_at_the_end_of_an_epoch(digits, tmp_path, workers):
    """22 steps an epoch: the checkpoint of step 22 is the epoch's last batch, and its evaluation comes first."""
    callback = {"class_path": "manyviews.evaluation.Evaluation", "init_args": {"every_n_epochs": 1}}
    changes = {"trainer__callbacks": [callback], "data__workers": workers}
    config = recipe(digits, checkpoints__every_n_steps=11, **changes)
    whole = run("fit", "--config", write(tmp_path / "whole.yaml", config), "--run", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    start_and_signal(tmp_path, config, signal.SIGKILL, 22)
    for path in (tmp_path / "run/checkpoints").glob("step-*.ckpt"):
        if path.name > "step-00000022.ckpt":
            path.unlink()
    again = run("fit", "--config", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert "going on from step-00000022.ckpt" in again.stderr
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    ours, theirs = scalars(tmp_path / "run"), scalars(tmp_path / "whole")
    assert [step for step, _ in theirs["val/knn20"]] == [22, 44, 60]
    for name in theirs:
        assert name.startswith("speed/") or ours[name] == theirs[name], name


@pytest.mark.parametrize(
    ("number", "code", "group"), [(signal.SIGTERM, 143, False), (signal.SIGTERM, 143, True), (signal.SIGINT, 130, True)]
)
def test_a_signal_saves_at_a_batch_boundary_and_tells_by_the_exit_code(
    digits, tmp_path, undisturbed, number, code, group
):
    """To the process, or to its whole group, loaders included, as a terminal and batch systems send it."""
    process = start_and_signal(tmp_path, recipe(digits, data__workers=2 if group else 0), number, 20, group=group)
    assert process.returncode == code, process.stderr
    assert f"saved; the same command (fit with --run {tmp_path / 'run'}) goes on" in process.stderr
    assert not (tmp_path / "run/finished.json").exists()
    assert run("fit", "--config", tmp_path / "recipe.yaml", "--run", tmp_path / "run").returncode == 0
    assert equal(weights(tmp_path / "run"), weights(undisturbed))


@pytest.mark.parametrize("step", [22, 23])
def test_a_signal_in_the_last_or_first_step_of_an_epoch(digits, tmp_path, undisturbed, step):
    """Epochs have 22 steps. The run sends itself the signal during that step."""
    callback = {"class_path": "tests.recipe.Interrupt", "init_args": {"step": step, "once": str(tmp_path / "sent")}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[callback]))
    stopped = run("fit", "--config", config, "--run", tmp_path / "run")
    assert stopped.returncode == 143 and "stopping after this step" in stopped.stderr, stopped.stderr
    assert newest_whole(tmp_path / "run/checkpoints").name == f"step-{step:08d}.ckpt"
    assert run("fit", "--config", config, "--run", tmp_path / "run").returncode == 0
    assert equal(weights(tmp_path / "run"), weights(undisturbed))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_after_the_end_does_not_spoil_the_exit_code(digits, tmp_path, number):
    """Slurm's warning, say, to a job that has just finished: it would count as failed."""
    callback = {"class_path": "tests.recipe.AtExit", "init_args": {"number": int(number)}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[callback], trainer__max_steps=2))
    done = program("fit", "--config", config, "--run", tmp_path / "run")
    assert done.returncode == 0 and (tmp_path / "run/finished.json").exists(), done.stderr


def test_a_signal_at_the_end_of_an_epoch_does_not_lose_its_score(digits, tmp_path):
    """The first epoch, of 22 steps, is evaluated and is the best so far, whatever stops the run there."""
    once = {"class_path": "tests.recipe.Interrupt", "init_args": {"step": 22, "once": str(tmp_path / "sent")}}
    evaluation = {"class_path": "manyviews.evaluation.Evaluation", "init_args": {"every_n_epochs": 1}}
    changes = {"trainer__callbacks": [once, evaluation], "checkpoints__monitor": "val/knn20"}
    config = write(tmp_path / "recipe.yaml", recipe(digits, **changes))
    assert run("fit", "--config", config, "--run", tmp_path / "run").returncode == 143
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 22
    (state,) = [s for name, s in best["callbacks"].items() if "Checkpoints" in name]
    assert state["best"] == pytest.approx(scalars(tmp_path / "run")["val/knn20"][0][1])


@pytest.mark.parametrize("step", [22, 29])
def test_a_run_ended_by_lightning_goes_on_where_it_was(digits, tmp_path, undisturbed, step):
    """`trainer.max_time` and early stopping end a run by `should_stop`; epochs have 22 steps."""
    callback = {"class_path": "tests.recipe.StopInside", "init_args": {"step": step, "once": str(tmp_path / "stopped")}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[callback]))
    assert run("fit", "--config", config, "--run", tmp_path / "run").returncode == 0
    assert newest_whole(tmp_path / "run/checkpoints").name == f"step-{step:08d}.ckpt"
    assert not (tmp_path / "run/finished.json").exists()
    assert run("fit", "--config", config, "--run", tmp_path / "run").returncode == 0
    assert equal(weights(tmp_path / "run"), weights(undisturbed))


def test_a_damaged_checkpoint_is_passed_over(digits, tmp_path, undisturbed):
    start_and_signal(tmp_path, recipe(digits), signal.SIGKILL, 30)
    newest = max((tmp_path / "run/checkpoints").glob("step-*.ckpt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 255
    newest.write_bytes(data)
    again = run("fit", "--config", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert again.returncode == 0 and "is not whole" in again.stderr
    assert list((tmp_path / "run/checkpoints").glob("*.broken")), "what is broken must not count as the newest"
    assert equal(weights(tmp_path / "run"), weights(undisturbed))


def test_finished_and_other_experiments(digits, tmp_path, undisturbed):
    config = write(tmp_path / "recipe.yaml", recipe(digits))
    again = run("fit", "--config", config, "--run", undisturbed)
    assert again.returncode == 0 and "finished already, 60 steps" in again.stderr
    other = run("fit", "--config", config, "--run", undisturbed, "--model.temperature", "0.1")
    assert other.returncode == 2
    assert "model.init_args.temperature: 0.2 there, 0.1 asked for" in other.stderr
    watched = run("fit", "--config", config, "--run", undisturbed, "--monitor.every_n_steps", "7")
    assert watched.returncode == 0  # how it is watched is no part of what it is


def test_the_saved_configuration_is_itself_runnable(tmp_path, undisturbed):
    done = run("fit", *TRUST, "--config", undisturbed / "config.yaml", "--run", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert equal(weights(tmp_path / "again"), weights(undisturbed))


def test_commands_on_the_checkpoint(tmp_path, undisturbed):
    knn = run("knn", *TRUST, "--run", undisturbed, "--k", "5", "--temperature", "0.1", "--json", tmp_path / "knn.json")
    assert knn.returncode == 0, knn.stderr
    content = json.loads((tmp_path / "knn.json").read_text())
    assert content["scores"]["knn5"] > 0.5 and content["protocol"]["k"] == [5]
    assert (tmp_path / "knn.png").stat().st_size > 5000
    probe = run("probe", *TRUST, "--run", undisturbed, "--epochs", "5", "--seeds", "2")
    assert probe.returncode == 0 and "+-" in probe.stdout and "logistic" in probe.stdout, probe.stderr
    retrieve = run("retrieve", *TRUST, "--run", undisturbed)
    assert (
        retrieve.returncode == 2
        and "Retrieval needs samples with 2 or more natural views, these have 1" in retrieve.stderr
    )
    nothing = run("knn", "--run", tmp_path)
    assert nothing.returncode == 2 and "no whole checkpoint" in nothing.stderr


def test_report(undisturbed):
    report = run("report", *TRUST, "--run", undisturbed)
    assert report.returncode == 0, report.stderr
    assert all(name in report.stdout for name in ("trained encoder", "untrained encoder", "raw pixels", "kNN"))
    scores = json.loads(next((undisturbed / "evaluations").glob("report-step-*.json")).read_text())["scores"]
    assert scores["raw pixels"]["knn20"] > 0.9  # digits: pixels are good features
    assert next(undisturbed.glob("neighbours-step-*.png")).stat().st_size > 1000


def test_embed_and_export(tmp_path, undisturbed):
    import numpy as np
    import pyarrow.parquet

    embed = run("embed", *TRUST, "--run", undisturbed, "--out", tmp_path / "f.npz", "--projector")
    assert embed.returncode == 0, embed.stderr
    stored = np.load(tmp_path / "f.npz")
    assert stored["features"].shape == (360, 1, 32) and len(set(stored["key"])) == 360
    assert list((undisturbed / "projector").rglob("tensors.tsv"))
    assert run("embed", *TRUST, "--run", undisturbed, "--out", tmp_path / "f.parquet").returncode == 0
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    np.testing.assert_allclose(np.stack(table["view0"].to_numpy()), stored["features"][:, 0], rtol=1e-6)
    export = run("export", *TRUST, "--run", undisturbed, "--out", tmp_path / "model")
    assert export.returncode == 0 and "loaded back, features differ by 0.0e+00" in export.stdout, export.stderr


def test_online_and_offline_numbers_are_the_same(digits, tmp_path):
    callback = {"class_path": "manyviews.evaluation.Evaluation", "init_args": {"every_n_epochs": 1}}
    config = recipe(digits, trainer__callbacks=[callback], trainer__max_steps=30, checkpoints__monitor="val/knn20")
    assert run("fit", "--config", write(tmp_path / "r.yaml", config), "--run", tmp_path / "run").returncode == 0
    online = scalars(tmp_path / "run")["val/knn20"]
    assert len(online) == 2
    assert run("knn", *TRUST, "--run", tmp_path / "run", "--json", tmp_path / "knn.json").returncode == 0
    assert json.loads((tmp_path / "knn.json").read_text())["scores"]["knn20"] == pytest.approx(online[-1][1], abs=1e-7)
    assert (tmp_path / "run/checkpoints/best.ckpt").exists()
    best = run("knn", *TRUST, "--checkpoint", tmp_path / "run/checkpoints/best.ckpt", "--json", tmp_path / "best.json")
    assert best.returncode == 0
    found = json.loads((tmp_path / "best.json").read_text())["scores"]["knn20"]
    assert found == pytest.approx(max(value for _, value in online), abs=1e-7)


def test_evaluation_during_training_leaves_no_trace(digits, tmp_path, undisturbed):
    callback = {"class_path": "manyviews.evaluation.Evaluation", "init_args": {"every_n_epochs": 1}}
    config = write(tmp_path / "r.yaml", recipe(digits, trainer__callbacks=[callback]))
    assert run("fit", "--config", config, "--run", tmp_path / "run").returncode == 0
    assert equal(weights(tmp_path / "run"), weights(undisturbed))


def test_two_ranks_killed_and_gone_on_with_one(digits, tmp_path):
    """Real gloo ranks from the command line; all of the group dies; one process takes the run over."""
    callback = {"class_path": "manyviews.evaluation.Evaluation", "init_args": {"every_n_epochs": 1}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[callback]))
    arguments = ["fit", "--config", config, "--run", tmp_path / "run"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = Started(*arguments, *two, group=True)
    process.await_((tmp_path / "run/checkpoints/step-00000030.ckpt").exists)
    process.send(signal.SIGKILL)
    process.end()
    assert 0 < scalars(tmp_path / "run")["val/knn20"][0][1] <= 1  # evaluated by both ranks together, at step 22
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "resumed on 1 ranks from a checkpoint of 2" in again.stderr
    assert [step for step, _ in scalars(tmp_path / "run")["train/loss"]] == [1, *range(5, 61, 5)]


def test_a_run_that_was_cut_short_is_not_called_finished(digits, tmp_path):
    config = write(tmp_path / "recipe.yaml", recipe(digits))
    dry = run("fit", "--config", config, "--run", tmp_path / "run", "--trainer.fast_dev_run", "2")
    assert dry.returncode == 0, dry.stderr
    assert "nothing of it is kept" in dry.stderr and not (tmp_path / "run").exists()
