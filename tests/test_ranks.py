"""Two real gloo ranks: every method trains as in one process, and sharded as under DDP; checkpoints serve either."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from manyviews.runs.storage import load
from tests.process import environment, run
from tests.ranks import RANDOM, every_method
from tests.recipe import recipe, scalars, write
from tests.support.every import TRIALS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", folder], env=environment(), stderr=log, start_new_session=True
        )
        try:
            code = process.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the second rank too
    assert code == 0, (folder / "log").read_text()[-3000:]
    return folder


def test_two_ranks_train_as_one_process(folder):
    """Losses, weights, queues, teachers, memories after three steps, without and with chunks.

    Without what cannot be the same: batch statistics, and the methods that draw random numbers in a step.
    """
    two = torch.load(folder / "ddp-alike.pt", weights_only=True)
    one = every_method("auto", alike=True)
    assert set(one) == set(two) == set(TRIALS) - RANDOM | {"image/SimCLR in chunks"}
    for case, expected in one.items():
        torch.testing.assert_close(two[case], expected, atol=1e-5, rtol=1e-4, msg=lambda m, case=case: f"{case}: {m}")


def test_every_method_is_sharded_as_under_ddp(folder):
    """Losses, weights, queues, teachers, memories, running statistics after three steps; each rank held about half of them."""
    ddp, fsdp2 = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("ddp", "fsdp2"))
    assert set(ddp) == set(fsdp2) == set(TRIALS)
    units = 0
    for case, expected in ddp.items():
        units += fsdp2[case].pop("units") > 1
        assert 0.5 <= fsdp2[case].pop("share") < 0.56, case
        torch.testing.assert_close(fsdp2[case], expected, atol=1e-5, rtol=1e-4, msg=lambda m, case=case: f"{case}: {m}")
    assert units >= 20, "block by block"


def test_a_run_resumes_bit_equal_and_under_the_other_strategy(folder):
    """Weights and the optimiser's state, of parameters many of which have one shape."""
    ends = {name: load(folder / name / "step-00000008.ckpt") for name in ("ddp", "fsdp2")}
    again = {
        name: load(folder / name / "step-00000008.ckpt") for name in ("fsdp2-to-fsdp2", "fsdp2-to-ddp", "ddp-to-fsdp2")
    }
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(again["fsdp2-to-fsdp2"][key], ends["fsdp2"][key], atol=0, rtol=0)
        torch.testing.assert_close(ends["fsdp2"][key], ends["ddp"][key], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(again["fsdp2-to-ddp"][key], ends["ddp"][key], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(again["ddp-to-fsdp2"][key], ends["fsdp2"][key], atol=1e-5, rtol=1e-4)
    plain, resumed = (load(folder / name / "step-00000008.ckpt")["state_dict"] for name in ("plain", "plain-resumed"))
    torch.testing.assert_close(resumed, plain, atol=0, rtol=0)


def test_half_precision_and_sharding(folder):
    """bf16 rounds to 3 digits; the same operations round alike, but sums over ranks do not."""
    ddp, fsdp2 = (load(folder / f"{name}-half/step-00000008.ckpt")["state_dict"] for name in ("ddp", "fsdp2"))
    full = load(folder / "ddp/step-00000008.ckpt")["state_dict"]
    torch.testing.assert_close(fsdp2, ddp, atol=1e-3, rtol=1e-2)
    assert any(not torch.equal(ddp[name], full[name]) for name in full)


def test_what_is_evaluated_is_the_checkpoint(folder):
    """Each rank has running statistics of its own; those of rank 0 are saved, and evaluated."""
    facts = json.loads((folder / "facts.json").read_text())
    assert set(facts) == {"ddp: features", "fsdp2: features"}
    assert all(difference < 1e-5 for difference in facts.values()), facts


def test_by_the_command(digits, tmp_path):
    """Stopped by a signal, resumed, evaluated: from the command line as any other run."""
    interrupt = {"class_path": "tests.recipe.Interrupt", "init_args": {"step": 12, "once": str(tmp_path / "once")}}
    changes = {"trainer__callbacks": [interrupt], "trainer__max_steps": 30, "stop": {"every_n_steps": 1}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, **changes))
    refused = run("fit", "--config", config, "--run", tmp_path / "run", "--trainer.strategy", "fsdp")
    assert refused.returncode == 2 and "give --trainer.strategy fsdp2" in refused.stderr
    command = ["fit", "--config", config, "--run", tmp_path / "run", "--trainer.devices", "2"]
    command += ["--trainer.strategy", "fsdp2"]
    first = run(*command)
    assert first.returncode != 0 and "stopped by SIGTERM at step 1" in first.stderr, first.stderr
    again = run(*command)
    assert again.returncode == 0 and "goodput 100.0 %" in again.stderr, again.stderr
    steps = [step for step, _ in scalars(tmp_path / "run")["train/loss"]]
    assert steps == sorted(set(steps)) and steps[-1] == 30
    assert (
        run("knn", "--trust", "tests.recipe", "--run", tmp_path / "run", "--k", "5", "--temperature", "0.1").returncode
        == 0
    )
