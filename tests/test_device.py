"""Every method on a device that is not there: what CUDA would refuse, and where the host waits for it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import environment
from tests.support.every import TRIALS, VIDEO_METHODS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended device's guard is compiled by g++"),
]
WAITS = Path(__file__).parent / "support" / "waits.json"
"""How often the host waits in a step of each method, as far as it does. Less is better: lower the numbers with it."""
PLANTED = """
import torch
from tests.support import pretend
import lightning
pretend.install()
x = pretend.Pretended(torch.ones(3))
with pretend.Watch():
    x + torch.ones(3)
    assert list(pretend.LOG.mixes) and not pretend.LOG.waits, vars(pretend.LOG)
    pretend.LOG.clear()
    for work in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.cpu(), lambda: torch.tensor([1.0], device="cuda")):
        pretend.LOG.clear()
        work()
        assert pretend.LOG.waits and not pretend.LOG.mixes, vars(pretend.LOG)
    pretend.LOG.clear()
    y = (x * 2 + torch.zeros((), device="cuda")).relu()
    assert y.device.type == "cuda" and pretend.LOG.kernels == 4 and not pretend.LOG.waits and not pretend.LOG.mixes
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Of each method: losses, mixes of devices, waits, kernels."""
    out = tmp_path_factory.mktemp("device") / "steps.json"
    done = run("-m", "tests.support.pretend", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_what_is_planted_is_seen():
    done = run("-c", PLANTED)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_method_runs_on_it_as_on_the_cpu(steps):
    assert steps.keys() == TRIALS.keys() | VIDEO_METHODS.keys()
    for name, found in steps.items():
        assert "error" not in found, f"{name}: {found['error']}"
        assert not found["mixes"], f"{name}: CUDA would refuse {found['mixes']}"
        assert math.isclose(found["device"], found["cpu"], rel_tol=1e-5, abs_tol=1e-6), name
        assert found["kernels"] > 20, name


def test_the_host_waits_no_more_than_it_did(steps):
    most = json.loads(WAITS.read_text())
    assert most.keys() <= steps.keys(), "numbers of methods that are no more"
    for name, found in steps.items():
        count = sum(found["waits"].values())
        assert count <= most.get(name, 0), f"{name}: the host waits {count} times: {found['waits']}"
