"""Claims and leaderboard: their files parse and build, a small study runs, is resumed, and its verdicts are honest."""

import json
import multiprocessing
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from manyviews import signals
from manyviews.backbones import ConvNet
from manyviews.cli import multistage, study, verdict
from manyviews.cli.evaluate import instantiate, side_by_side
from manyviews.cli.export import export_backbone
from manyviews.evaluation import Features
from manyviews.methods import Method
from manyviews.similarity import unit
from tests.process import Started, gone, run
from tests.recipe import recipe, write

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STUDIES = sorted(p for folder in ("claims", "leaderboard") for p in (EXPERIMENTS / folder).glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_variant_of_every_study_builds(path, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(path.parent))
    tower = {"class_path": "manyviews.backbones.ConvNet", "init_args": {"widths": [4, 8, 16]}}
    list(export_backbone(ConvNet([4, 8, 16]), {"init_args": {"backbone": tower}}, torch.zeros(1, 3, 32, 32), tmp_path))
    found = study.Study.read(path)
    assert len(found.seeds) >= 3 and found.content["scale"]
    for name, config in found.variants.items():
        if "lightly" in name and find_spec("lightly") is None:  # the peers come with [bench]
            continue
        config = json.loads(json.dumps(config).replace("runs/claims-tower", str(tmp_path)))  # made when the study runs
        method, data = instantiate({k: v for k, v in config.items() if k != "stages"})
        assert isinstance(method, Method), name
        assert config["trainer"]["callbacks"] == [], name
        assert data.global_batch_size % data.lanes == 0


def test_merging():
    base = {
        "a": 1,
        "data": {"class_path": "x", "init_args": {"p": 1, "q": {"r": 2}}},
        "model": {"class_path": "M", "init_args": {"k": 1}},
    }
    out = study.merged(
        base, {"a": None, "data": {"init_args": {"q": {"r": 3}}}, "model": {"class_path": "N", "init_args": {"l": 2}}}
    )
    assert out == {
        "data": {"class_path": "x", "init_args": {"p": 1, "q": {"r": 3}}},
        "model": {"class_path": "N", "init_args": {"k": 1, "l": 2}},
    }
    other = study.merged(base, {"data": {"class_path": "y", "init_args": {"z": 1}}})
    assert other["data"] == {"class_path": "y", "init_args": {"z": 1}}
    assert base["a"] == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.03, 0.031, 0.029], "seen"), ([-0.03, -0.031, -0.029], "not seen: the reverse"), ([0.05, -0.02, 0.01], "inside noise"),
     ([0.02, 0.03, 0.001], "inside noise")],
)  # fmt: skip
def test_verdicts(values, expected):
    """By Student's t with two degrees of freedom: three seeds of one sign are not yet an effect."""
    mean = sum(values) / 3
    error = (sum((v - mean) ** 2 for v in values) / 2 / 3) ** 0.5
    assert verdict.verdict(mean, error, 3) == expected
    assert verdict.verdict(0.1, float("nan"), 1) == "not known: one seed"


def test_clusters_of_stages_are_digits_of_one_number():
    before, now = np.array([3, 0, 9]), np.array([7, 7, 0])
    assert multistage.refine(before, now, 10).tolist() == [37, 7, 90]
    assert multistage.refine(None, now, 10).tolist() == now.tolist()


def test_features_side_by_side_have_the_mean_of_the_stages_cosines():
    stages = [Features(torch.randn(1, 9, d), *[torch.arange(9)] * 3) for d in (4, 7)]
    both = unit(side_by_side(stages).views[0])
    cosines = [unit(stage.views[0]) @ unit(stage.views[0]).T for stage in stages]
    torch.testing.assert_close(both @ both.T, sum(cosines) / 2)
    assert side_by_side(stages[:1]) is stages[0]


@pytest.fixture(scope="module")
def small(digits, tmp_path_factory):
    """A study of two variants, two seeds, a dozen steps; the second variant in two stages."""
    folder = tmp_path_factory.mktemp("study")
    write(folder / "base.yaml", recipe(digits, trainer__max_steps=12, checkpoints__every_n_steps=0))
    content = {
        "title": "more steps help", "scale": "none", "recipe": "base.yaml", "seeds": [0, 1],
        "needs": {str(digits): "builtin:digits"},
        "variants": {"short": {"trainer": {"max_steps": 3}}, "staged": {"stages": 2, "data": {"init_args": {"global_batch_size": 32}}}},
        "columns": ["knn20", "cpu_seconds"], "sort": "knn20",
        "effects": [{"name": "longer minus shorter", "measure": "knn20", "of": {"staged": 1, "short": -1}}],
    }  # fmt: skip
    (folder / "studies").mkdir()
    (folder / "base.yaml").rename(folder / "studies/base.txt")
    content["recipe"] = "base.txt"
    (folder / "studies/steps.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.slow
def test_a_study_runs_and_goes_on(small):
    arguments = ["claims", "--studies", small / "studies", "--out", small / "out"]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr + first.stdout
    assert "4 runs, 0 done before" in first.stderr and "longer minus shorter" in first.stdout
    content = json.loads((small / "out/steps.json").read_text())
    assert {len(runs) for runs in content["results"].values()} == {2}
    effect = content["found"][0]
    scores = {name: [each["scores"]["knn20"] for each in runs] for name, runs in content["results"].items()}
    assert effect["seeds"] == pytest.approx([b - a for a, b in zip(scores["short"], scores["staged"], strict=True)])
    assert effect["verdict"] in ("seen", "inside noise", "not seen: the reverse")
    assert (small / "out/steps.png").stat().st_size > 5000 and "git" in content and "cores" in content["hardware"]
    assert f"| short | {sum(scores['short']) / 2:.3f} +- " in (small / "out/steps.md").read_text()
    assert json.loads((small / "out/claims.json").read_text()) == content["found"]
    assert (small / "out/steps/staged-seed0/run/stage-1/finished.json").exists()
    raw = yaml.safe_load((small / "studies/steps.yaml").read_text())
    changed = {**raw, "variants": {**raw["variants"], "short": {"trainer": {"max_steps": 4}}}}
    (small / "studies/steps.yaml").write_text(yaml.safe_dump(changed))
    refused = run(*arguments)
    assert refused.returncode == 2 and "short-seed0 holds a result of another recipe" in refused.stderr
    (small / "studies/steps.yaml").write_text(yaml.safe_dump(raw))
    result = small / "out/steps/short-seed1/result.json"
    result.unlink()
    start = next((result.parent / "run").rglob("attempts/0001.json"))  # what an earlier start cost is not forgotten
    start.write_text(json.dumps(json.loads(start.read_text()) | {"seconds": 1000.0, "cpu_seconds": 2000.0}))
    again = run(*arguments, "steps")
    assert "4 runs, 3 done before" in again.stderr
    redone = json.loads(result.read_text())
    assert redone["seconds"] > 1000 and redone["cpu_seconds"] > 2000
    assert json.loads((small / "out/steps.json").read_text())["results"]["staged"] == content["results"]["staged"]


@pytest.mark.slow
def test_what_is_wrong_with_a_study_is_said(small):
    missing = run("claims", "--studies", small / "studies", "--out", small / "out", "stps")
    assert missing.returncode == 2 and "no study 'stps', did you mean 'steps'?" in missing.stderr
    bad = small / "bad"
    bad.mkdir()
    (bad / "x.yaml").write_text("title: x\nvariants: {a: {recipe: nowhere.yaml}}\n")
    assert "variant a has no recipe, or it does not exist: nowhere.yaml" in run("claims", "--studies", bad).stderr
    (bad / "x.yaml").write_text("title: x\nvarients: {}\n")
    assert "unknown key 'varients'" in run("claims", "--studies", bad).stderr
    raw = yaml.safe_load((small / "studies/steps.yaml").read_text())
    unknown = {**raw, "effects": [{**raw["effects"][0], "measure": "knn7"}]}
    (small / "studies/steps.yaml").write_text(yaml.safe_dump(unknown))
    assert (
        "no measure 'knn7'; there are" in run("claims", "--studies", small / "studies", "--out", small / "out").stderr
    )
    broken = {**raw, "set": {"model": {"init_args": {"training": {"optimizer": {"init_args": {"lr": 1.0e30}}}}}}}
    (small / "studies/steps.yaml").write_text(yaml.safe_dump(broken))
    failed = run("claims", "--studies", small / "studies", "--out", small / "out3")
    assert failed.returncode == 2 and "FAILED" in failed.stderr and "log.txt" in failed.stderr, failed.stderr
    raw["needs"] = {str(small / "nothing"): "{data}/set"}
    (small / "studies/steps.yaml").write_text(yaml.safe_dump(raw))
    skipped = run("claims", "--studies", small / "studies", "--out", small / "out2")
    assert skipped.returncode == 0 and "skipped: steps needs {data}/set: give --data-dir" in skipped.stderr


@pytest.fixture(scope="module")
def endless(small):
    """A study of eight runs that do not end by themselves, and take a second to stop."""
    (small / "alone").mkdir()
    slow = {"class_path": "tests.recipe.Slow", "init_args": {"seconds": 1.0}}
    run = {"trainer": {"max_steps": 10**6, "callbacks": [slow]}, "checkpoints": {"every_n_steps": 1}}
    long = {"title": "long", "recipe": "../studies/base.txt", "seeds": list(range(8)), "variants": {"long": run}}
    (small / "alone/long.yaml").write_text(yaml.safe_dump(long))
    return small / "alone/long.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(os.kill, signal.SIGTERM, 130), (os.killpg, signal.SIGTERM, 130), (os.kill, signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_study_leaves_nothing_running(endless, tmp_path, send, number, code):
    """SIGTERM to the study, or as `timeout` and Slurm send it to its server and its runs too; SIGKILL to the study."""
    process = Started("claims", "--studies", endless.parent, "--out", tmp_path, "--workers", 2, group=True)
    process.await_(lambda: len({path.parent for path in tmp_path.rglob("step-*.ckpt")}) == 2)
    send(process.pid, number)
    ended = process.end(120)
    assert ended.returncode == code, ended.stderr
    if number == signal.SIGKILL:
        assert gone(process.pid, 20)
    logs = [log.read_text() for log in tmp_path.rglob("log.txt")]
    assert len(logs) == 2 and all("stopped by SIGTERM" in log for log in logs), "the study ended before its runs"
    assert gone(process.pid, 20)


@pytest.mark.slow
def test_a_study_that_is_stopped_while_it_starts_a_run_does_not_lose_it(endless, tmp_path, monkeypatch):
    kind, started = multiprocessing.get_context("forkserver").Process, []

    def start(self, plain=kind.start):
        plain(self)
        started.append(self)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kind, "start", start)
    with pytest.raises(KeyboardInterrupt):
        study._run_all(study.Study.read(endless), {("long", seed): tmp_path / str(seed) for seed in range(8)}, 8)
    assert len(started) == 1 and started[0].exitcode is not None
    assert signals.received is None, "what comes next in this process would stop at once"
