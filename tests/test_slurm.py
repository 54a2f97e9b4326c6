"""Jobs on a real Slurm cluster of one node: time limits, requeues, arrays, chains, dead ranks.

The cluster is started here, as root; `tests/slurm_cluster.sh install` brings the packages on Debian and Ubuntu.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from manyviews.cli import main
from tests.process import run
from tests.recipe import recipe, scalars, weights, write
from viewshards.cli import main as viewshards

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "tests/slurm_cluster.sh"
DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = pytest.mark.slow
slurm = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason=f"a Slurm cluster of its own wants root and {', '.join(DAEMONS)}: tests/slurm_cluster.sh install",
)


class Site:
    """A project's root as on a cluster: the scripts, recipes, and where runs go."""

    def __init__(self, folder: Path, digits: Path) -> None:
        self.folder, self.digits = folder, digits
        (folder / "slurm").symlink_to(ROOT / "slurm")

    def recipe(self, name: str, seconds: float, **changes) -> Path:
        """Writes a recipe whose steps take that long and which writes down the samples it saw."""
        callbacks = [{"class_path": "tests.recipe.Ids"}]
        if seconds:
            callbacks.append({"class_path": "tests.recipe.Slow", "init_args": {"seconds": seconds}})
        return write(self.folder / name, recipe(self.digits, trainer__callbacks=callbacks, **changes))

    def submit(self, *arguments: str, sbatch: str | None = "") -> list[str]:
        """`manyviews submit`; returns the numbers of the jobs. All of the environment is passed on, for the tests'
        classes, unless `sbatch` is None."""
        given = ["submit", *map(str, arguments), *([f"--sbatch=--export=ALL {sbatch}"] if sbatch is not None else [])]
        done = run(*given, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return [line.split()[0] for line in done.stdout.splitlines()]

    def call(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        shown = self.call("scontrol", "show", "job", "-o", job)
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def await_end(self, job: str, seconds: float = 300) -> dict[str, str]:
        deadline = time.monotonic() + seconds
        while (found := self.state(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            assert time.monotonic() < deadline, f"job {job}: {found['JobState']}\n{self.log(job)}"
            time.sleep(0.3)
        return found

    def await_file(self, path: str, job: str, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not (self.folder / path).exists():
            assert time.monotonic() < deadline, f"{path} of job {job}\n{self.log(job)}"
            time.sleep(0.1)

    def log(self, job: str) -> str:
        return "".join(path.read_text() for path in (self.folder / "runs/slurm").glob(f"*-{job}.out"))

    def ids(self, run_name: str, ranks: int) -> list[str]:
        return [(self.folder / f"runs/{run_name}/ids-{rank}.txt").read_text() for rank in range(ranks)]

    def equal(self, one: str, other: str, ranks: int) -> None:
        """Weights, samples of each rank, and curves, with no step twice and none left out."""
        a, b = (weights(self.folder / "runs" / name) for name in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in b)
        assert self.ids(one, ranks) == self.ids(other, ranks)
        a, b = (scalars(self.folder / "runs" / name) for name in (one, other))
        assert all(a[name] == b[name] for name in b if not name.startswith("speed/"))


@pytest.fixture(scope="module")
def site(digits, tmp_path_factory):
    where = tmp_path_factory.mktemp("cluster")
    started = subprocess.run([CLUSTER, "start", where], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip())
        patch.setenv("MANYVIEWS_BIN", str(Path(sys.executable).parent))
        yield Site(tmp_path_factory.mktemp("site"), digits)
    subprocess.run([CLUSTER, "stop", where], capture_output=True)


@pytest.fixture(scope="module")
def undisturbed(site):
    """The same recipe on two ranks without Slurm, from start to end."""
    config = site.recipe("plain.yaml", 0.0)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = run("fit", "--config", config, "--run", "runs/undisturbed", *two, cwd=site.folder)
    assert done.returncode == 0, done.stderr
    return "undisturbed"


@pytest.fixture(scope="module")
def limited(site):
    """A job that meets its time limit. It takes three minutes, in which the other tests go on.

    Slurm sends the signal up to a minute before it is due: one to two minutes after the start, at no step or after the
    last one neither on a slow machine nor on a fast one.
    """
    site.recipe("limited.yaml", 2.0)
    options = ("--tasks-per-node", "2", "--time", "3")
    return site.submit("pretrain", "limited.yaml", *options, sbatch="--signal=USR1@60")[0]


@slurm
def test_a_job_and_a_task_of_an_array_are_requeued(site, limited, undisturbed):
    """`scontrol requeue` of a job of two ranks and of one task of an array, USR1 to its other task, which has the array's
    own number: each goes on in its own folder, alone."""
    site.recipe("requeued.yaml", 0.3, data__workers=2)
    site.recipe("point.yaml", 0.6)
    write(site.folder / "grid.yaml", {"recipe": "point.yaml", "grid": {"model.temperature": [0.2, 0.5]}})
    # Submitting reads the recipe, which takes seconds: held meanwhile, or the job would be done before the sweep is there.
    (job,) = site.submit("pretrain", "requeued.yaml", "--tasks-per-node", "2", sbatch="--hold")
    (array,) = site.submit("sweep", "grid.yaml", sbatch="--hold")
    site.call("scontrol", "release", job, array)
    site.await_file(f"runs/requeued-{job}/checkpoints/step-00000010.ckpt", job)
    site.call("scontrol", "requeue", job)
    for task in (0, 1):
        site.await_file(f"runs/grid-{array}_{task}/checkpoints/step-00000010.ckpt", f"{array}_{task}")
    same, other = (0, 1) if site.state(f"{array}_0")["JobId"] == array else (1, 0)
    site.call("scontrol", "requeue", f"{array}_{other}")
    site.call("scancel", "--signal=USR1", f"{array}_{same}")
    ended = [site.await_end(number) for number in (job, f"{array}_{other}", f"{array}_{same}")]
    assert [e["JobState"] for e in ended] == ["COMPLETED"] * 3, site.log(job) + site.log(f"{array}_{same}")
    assert [int(e["Restarts"]) for e in ended] == [1, 1, 1]
    assert "stopped by SIGUSR1" in site.log(f"{array}_{same}")
    assert "stopped by SIGTERM" in site.log(job), site.log(job)
    site.equal(f"requeued-{job}", undisturbed, 2)
    alone = ["fit", "--config", "point.yaml", "--run", "runs/alone", "--model.temperature", "0.5"]
    done = run(*alone, cwd=site.folder)
    assert done.returncode == 0, done.stderr
    site.equal(f"grid-{array}_1", "alone", 1)
    assert {path.name for path in (site.folder / "runs").glob("grid-*")} == {f"grid-{array}_0", f"grid-{array}_1"}


@slurm
def test_a_chain_of_pretraining_and_evaluations(site):
    """Pretraining on images and texts, then a probe, then zero-shot: jobs by dependencies, with the environment that
    the scripts hand on; each sees the checkpoint of the first."""
    assert viewshards(["pack", "builtin:shapes", str(site.folder / "runs/data/shapes")]) == 0
    config = yaml.safe_load((ROOT / "experiments/clip/shapes.yaml").read_text())
    config["trainer"] = {"accelerator": "cpu", "max_steps": 30}
    write(site.folder / "chained.yaml", config)
    first, probe, zeroshot = site.submit("pretrain", "chained.yaml", "--then", "probe", "zeroshot", sbatch=None)
    ended = [site.await_end(job) for job in (first, probe, zeroshot)]
    logs = site.log(first) + site.log(probe) + site.log(zeroshot)
    assert [e["JobState"] for e in ended] == ["COMPLETED"] * 3, logs
    stored = [path.name for path in (site.folder / f"runs/chained-{first}/evaluations").glob("*00000030.json")]
    assert sorted(name.partition("-")[0] for name in stored) == ["linear", "logistic", "zeroshot"]
    assert "linear" in site.log(probe) and "zeroshot" in site.log(zeroshot)


@slurm
def test_a_killed_rank_ends_the_job(site):
    """SIGKILL, as by the kernel when memory runs out: srun says which, and does not wait for the others."""
    fault = {"class_path": "tests.recipe.Fault", "init_args": {"step": 12, "rank": 1, "kind": "kill"}}
    write(site.folder / "killed.yaml", recipe(site.digits, trainer__callbacks=[fault]))
    (job,) = site.submit("pretrain", "killed.yaml", "--tasks-per-node", "2")
    ended = site.await_end(job, seconds=120)
    log = site.log(job)
    assert ended["JobState"] == "FAILED" and ended["Restarts"] == "0", log
    assert "task 1" in log and "Killed" in log


@slurm
def test_the_time_limit_saves_requeues_and_goes_on(site, limited, undisturbed):
    """Slurm's own USR1, a minute or two before the limit of three, on two ranks."""
    ended = site.await_end(limited, seconds=400)
    log = site.log(limited)
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 1, log
    assert "stopped by SIGUSR1" in log and "the job asks to be queued again" in log and "goodput 100.0 %" in log
    site.equal(f"limited-{limited}", undisturbed, 2)
    assert json.loads((site.folder / f"runs/limited-{limited}/finished.json").read_text())["goodput"] == 1.0


def test_what_submit_would_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "experiments/clip/emoji.yaml", {})
    write(tmp_path / "grid.yaml", {"recipe": "experiments/clip/emoji.yaml", "grid": {"a.b": [1, [2, 3]], "c": ["x y"]}})
    cluster = ["--nodes", "2", "--gpus-per-node", "8", "--time", "4:00:00"]
    then = ["--then", "probe", "zeroshot", "--dry-run"]
    assert main(["submit", "pretrain", "experiments/clip/emoji.yaml", *cluster, *then, "--seed_everything", "3"]) == 0
    folder, pretrain, probe, zeroshot = capsys.readouterr().out.splitlines()
    assert folder == "mkdir -p runs/slurm"
    assert pretrain == (
        "pretrain=$(sbatch --parsable --job-name=clip-emoji --output=runs/slurm/%x-%j.out --nodes=2 --ntasks-per-node=8 "
        "--gpus-per-node=8 --time=4:00:00 slurm/pretrain.sbatch experiments/clip/emoji.yaml --seed_everything 3)"
    )
    after = '--dependency=afterok:"$pretrain"'
    assert after in probe and probe.endswith('probe.sbatch runs/clip-emoji-"$pretrain" probe)')
    assert f'{after},afterany:"$probe" --kill-on-invalid-dep=yes' in zeroshot
    assert "--gpus=1" in zeroshot
    assert main(["submit", "sweep", "grid.yaml", "--at-once", "1", "--dry-run"]) == 0
    assert "--array=0-1%1" in capsys.readouterr().out
    assert main(["grid", "grid.yaml", "--task", "1"]) == 0
    words = capsys.readouterr().out.split("\0")
    assert words == ["--config=experiments/clip/emoji.yaml", "--a.b=[2, 3]", "--c=x y", ""]
    assert not (tmp_path / "runs").exists()
    for wrong, told in (
        (["grid", "grid.yaml", "--task", "2"], "has 2 points, 0 to 1; got task 2"),
        (["submit", "pretrain", "nothing.yaml"], "nothing.yaml does not exist"),
        (["submit", "sweep", "experiments/clip/emoji.yaml"], "a grid has the keys recipe and grid"),
        (["submit", "pretrain", "grid.yaml"], "is a grid: manyviews submit sweep grid.yaml"),
        (["submit", "sweep", "grid.yaml", "--run", "runs/x"], "all tasks would go on in runs/x"),
        (["submit", "probe", "experiments"], "experiments is no run"),
        (["submit", "pretrain", "experiments/clip/emoji.yaml", "--at-once", "2"], "--at-once is for a sweep"),
        (["submit", "probe", "grid.yaml", "--then", "knn"], "--then follows a pretrain job"),
        (["submit", "pretrain", "experiments/clip/emoji.yaml", "--then", "prbe"], "no evaluation 'prbe'"),
        (["submit", "probe", "grid.yaml", "knnn"], "no evaluation 'knnn'"),
    ):
        assert main(wrong) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["a b", "a'b", 'a"b', "$(touch owned)", "a;touch owned", "`touch owned`", "a\nb", "$pretrain", "a|b>c", "%j"],
)
def test_a_printed_command_runs_nothing_but_sbatch(tmp_path, monkeypatch, capsys, name):
    """Pasted into a shell: `sbatch` gets each word as it was typed, whatever is in it; later jobs get its number."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    monkeypatch.chdir(tmp_path)
    recipe = f"experiments/{name}/{name}.yaml"
    write(tmp_path / recipe, {})
    (tmp_path / "bin").mkdir()
    stub = "#!/usr/bin/env python3\nimport json, sys\njson.dump(sys.argv[1:], open('seen', 'a')); open('seen', 'a').write('\\n')\nprint(77)\n"
    (tmp_path / "bin/sbatch").write_text(stub)
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    rest = ["--seed_everything", "3", f"--model.x={name}"]
    assert main(["submit", "pretrain", recipe, "--then", "probe", "--dry-run", "--partition", name, *rest]) == 0
    done = subprocess.run(["bash", "-c", capsys.readouterr().out], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    first, then = (json.loads(line) for line in (tmp_path / "seen").read_text().splitlines())
    assert first[-4:] == [recipe, *rest] and f"--partition={name}" in first
    title = next(word for word in first if word.startswith("--job-name="))
    assert re.fullmatch(r"--job-name=[\w.+-]+", title)
    assert "--dependency=afterok:77" in then and then[-2:] == [f"runs/{name}-{name}-77", "probe"]
    assert not list(tmp_path.rglob("owned"))


def test_a_point_of_a_grid_reaches_the_job_as_it_is(tmp_path, capsys):
    strange = ["a b", "x\ny", "$(touch owned)", "'\"", "`touch owned`"]
    grid = write(tmp_path / "a\nb/grid.yaml", {"recipe": "point.yaml", "grid": {"model.name": strange}})
    write(tmp_path / "a\nb/point.yaml", {})
    for number, value in enumerate(strange):
        assert main(["grid", str(grid), "--task", str(number)]) == 0
        out = capsys.readouterr().out
        code = 'mapfile -d "" -t point; printf "%s\\0" "${#point[@]}" "${point[@]}"'
        done = subprocess.run(["bash", "-c", code], input=out, capture_output=True, text=True, cwd=tmp_path)
        count, config, option, _ = done.stdout.split("\0")
        assert count == "2" and config == f"--config={tmp_path}/a\nb/point.yaml"
        assert yaml.safe_load(option.removeprefix("--model.name=")) == value
    assert not list(tmp_path.rglob("owned"))


def test_an_evaluation_reads_its_options_before_the_queue(tmp_path, monkeypatch, capsys):
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "c.ckpt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["submit", "probe", "c.ckpt", "knn", "--kk", "5"])
    assert "unrecognized arguments: --kk 5" in capsys.readouterr().err


def test_a_typing_error_is_told_before_the_queue(digits, tmp_path):
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    write(tmp_path / "r.yaml", recipe(digits))
    done = run("submit", "pretrain", "r.yaml", "--model.temprature", "0.1", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean" in done.stderr and not (tmp_path / "runs").exists()


def test_the_doctor(digits, tmp_path):
    well = run("doctor", "--data", digits, "--run", tmp_path / "runs")
    assert "1437 samples" in well.stdout and "all-reduce right" in well.stdout and "GiB free" in well.stdout
    failed = [line for line in well.stdout.splitlines() if line.startswith("│ FAIL") and "/dev/shm" not in line]
    assert not failed and well.returncode == int("│ FAIL" in well.stdout), well.stdout + well.stderr
    (tmp_path / "file").write_text("")
    ill = run("doctor", "--data", tmp_path, "--run", tmp_path / "file")
    failed = [line for line in ill.stdout.splitlines() if line.startswith("│ FAIL") and "/dev/shm" not in line]
    assert ill.returncode == 1 and len(failed) == 2, ill.stdout
