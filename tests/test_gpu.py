"""On a machine with a GPU: what the CPU and the pretended device cannot show. `make gpu` runs it.

`DEVICE=cpu make gpu` tries these tests themselves where there is none. Tolerances of the comparisons with the CPU are
those of float32 products summed in another order.
"""

import os
import signal
import subprocess
import sys
import time
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from manyviews.backbones.points import group
from manyviews.distributed import LOCAL, ProcessGather
from manyviews.monitoring import CollapseAlarm, Monitor
from manyviews.objectives import CLIP, NTXent, SigLIP
from manyviews.runs import FiniteGuard, StopOnSignal
from tests.process import environment
from tests.recipe import recipe, weights, write
from tests.support.every import TRIALS, VIDEO_METHODS, moved
from viewshards.views import Augmentation, device

DEVICE = os.environ.get("DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here"),
]
EVERY = {**TRIALS, **VIDEO_METHODS}
SOME = (
    "image/SimCLR", "image/MoCo", "image/BYOL", "image/SwAV", "image/BarlowTwins", "image/GroupWhitened", "text/CLIP",
    "text/SigLIP", "text/FILIP", "points/PointMAE", "video/TrajViT",
)  # fmt: skip
DRAWING = {
    "MoCHi", "Hallucinator", "Hallucinator-MoCo", "Hallucinator-SimSiam", "CMIM", "CMIM-Repulsor", "ImageVolume",
    "BECLR", "SepCLR", "BaCon", "CPL", "ScatSimCLR", "ScatSimCLR-jigsaw", "MECO", "SupReMix", "PointMAE",
    "PointMAE-block", "PointCMAE", "PointCMAE-columns",
}  # fmt: skip
"""They draw on the device, whose generator is another one: only the size of their loss is compared."""


def test_those_that_draw_are_in_the_tables():
    assert {name.partition("/")[2] for name in EVERY} >= DRAWING


def draws(name):
    return name.partition("/")[2] in DRAWING


def step(name, where):
    """Loss and gradients of a first step."""
    method = EVERY[name].make().to(where).train()
    torch.manual_seed(3)
    loss = method.training_step(moved(EVERY[name].batches()[0], lambda tensor: tensor.to(where)), 0)["loss"]
    if loss.requires_grad:
        loss.backward()
    slopes = [p.grad.flatten().double().cpu() for p in method.parameters() if p.grad is not None]
    return loss.item(), torch.cat(slopes)


@pytest.mark.parametrize("name", EVERY)
def test_a_step_is_that_of_the_cpu(name):
    (loss, slopes), (expected, reference) = step(name, DEVICE), step(name, "cpu")
    assert loss == pytest.approx(expected, abs=(0.5 if draws(name) else 1e-4) * max(1, abs(expected)))
    if not draws(name):
        assert (slopes - reference).norm() <= 5e-3 * reference.norm()


class Losses(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen.append(outputs["loss"].detach())


def trained(name, precision="32-true", **options):
    """Method, losses and guard after six steps with all callbacks."""
    method, losses, guard = EVERY[name].make(), Losses(), FiniteGuard()
    callbacks = [losses, Monitor(3, 0), CollapseAlarm(3, warmup_steps=0), StopOnSignal(), guard]
    trainer = pl.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, max_steps=6, precision=precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        **options,
    )  # fmt: skip
    pl.seed_everything(7, verbose=False)
    trainer.fit(method, torch.utils.data.DataLoader(EVERY[name].batches(), batch_size=None))
    return method, [loss.item() for loss in losses.seen], guard


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", SOME)
def test_half_precision(name, precision):
    if precision == "16-mixed" and DEVICE == "cpu":
        pytest.skip("a CPU has no float16 arithmetic worth the name")
    full, (method, half, guard) = trained(name)[1], trained(name, precision)
    assert all(bool(p.isfinite().all()) for p in method.parameters()) and guard.skipped <= 1
    assert half[0] == pytest.approx(full[0], abs=(1.0 if draws(name) else 0.05) * max(1, abs(full[0])))


@pytest.mark.parametrize("name", ["image/SimCLR", "image/BYOL", "points/SimCLR", "video/TrajViT"])
def test_a_deterministic_run_repeats_bit_by_bit(name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first, second = (trained(name, deterministic=True)[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_blocks_of_the_similarities_against_float64():
    views = [torch.randn(5000, 128, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = []
    for where, dtype in (("cpu", torch.float64), (DEVICE, torch.float32)):
        made = [view.to(where, dtype).requires_grad_() for view in views]
        loss = NTXent(0.1).to(where)(made)
        loss.backward()
        found.append((loss.item(), torch.cat([view.grad for view in made]).double().cpu()))
    (expected, reference), (loss, slopes) = found
    assert loss == pytest.approx(expected, abs=1e-5)
    assert (slopes - reference).norm() <= 1e-4 * reference.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_colour_on_the_device(compiled):
    augmentation = Augmentation(64, (0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5, solarize=0.2)
    rng = np.random.default_rng(0)
    rows = torch.tensor([device.row(augmentation.draw(rng, 90, 90)) for _ in range(64)])
    pictures = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = torch.compile(device.colour, fullgraph=True) if compiled else device.colour
    expected = device.colour(pictures, rows, augmentation)
    found = made(pictures.to(DEVICE), rows.to(DEVICE), augmentation).cpu()
    assert ((found - expected).abs() > 1e-3).float().mean() < 1e-3  # at the thresholds of solarising and of hue


def test_farthest_point_sampling():
    points = torch.randn(8, 512, 3, generator=torch.Generator().manual_seed(0))
    points[0, 300:] = torch.nan
    expected, found = group(points, 32, 16), group(points.to(DEVICE), 32, 16)
    assert torch.equal(found.centres.cpu(), expected.centres)
    torch.testing.assert_close(found.relative.cpu(), expected.relative, atol=1e-6, rtol=0, equal_nan=True)


def test_one_rank_of_nccl(tmp_path):
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        gather = ProcessGather()
        rows = gather(3)
        for home in {"cpu", DEVICE}:  # cached features lie on the CPU
            values = torch.arange(6.0, device=home).view(3, 2)
            assert rows.sizes == [3] and torch.equal(rows.gather(values), values)
        torch.manual_seed(0)
        views = [torch.randn(64, 16) for _ in range(2)]
        for objective in (NTXent(0.2), CLIP(), SigLIP()):
            objective.to(DEVICE)
            slopes = []
            for way in (LOCAL, gather):
                made = [view.to(DEVICE, copy=True).requires_grad_() for view in views]
                objective(made, gather=way).backward()
                slopes.append([view.grad for view in made])
            torch.testing.assert_close(slopes[0], slopes[1])
    finally:
        torch.distributed.destroy_process_group()


def test_a_killed_run_resumes_bit_by_bit(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config = recipe(digits, trainer__max_steps=60, checkpoints__every_n_steps=5)
    config["trainer"] |= {"accelerator": "gpu" if DEVICE == "cuda" else "cpu", "deterministic": True}
    file = write(tmp_path / "recipe.yaml", config)
    code = "import sys; from manyviews.cli import main; sys.exit(main())"

    def fit(run):
        command = [sys.executable, "-c", code, "fit", "--config", str(file), "--run", str(run)]
        with (tmp_path / "said.txt").open("wb") as said:  # a pipe nobody reads would fill
            return subprocess.Popen(command, env=environment(), stderr=said, start_new_session=True)

    assert fit(tmp_path / "whole").wait(300) == 0
    broken = fit(tmp_path / "broken")
    while not any((tmp_path / "broken/checkpoints").glob("step-*.ckpt")) and broken.poll() is None:
        time.sleep(0.05)
    os.killpg(broken.pid, signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL, "it ended before it was killed"
    resumed = fit(tmp_path / "broken")
    assert resumed.wait(300) == 0 and "going on from" in (tmp_path / "said.txt").read_text()
    whole, found = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(value, found[name]) for name, value in whole.items())


@pytest.mark.parametrize("name", SOME)
def test_where_the_host_waits_is_printed(name, capsys):
    """By torch's own watch, for a look beside the numbers of the pretended device."""
    if DEVICE == "cpu":
        pytest.skip("only a GPU is waited for")
    method = EVERY[name].make().to(DEVICE).train()
    batch = moved(EVERY[name].batches()[0], lambda tensor: tensor.to(DEVICE))
    method.training_step(batch, 0)["loss"].backward()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            method.training_step(batch, 0)["loss"].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = sorted(f"{w.filename.rpartition('/ssl/')[2]}:{w.lineno}" for w in seen if "synchroniz" in str(w.message))
    with capsys.disabled():
        print(f"\n{name}: the host waits {len(places)} times: {', '.join(places)}")
