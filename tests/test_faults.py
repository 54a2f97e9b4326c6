"""What goes wrong on clusters, brought about on purpose: signals, dead and silent ranks, full disks, damaged files."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from manyviews.runs import AtomicCheckpointIO, newest_whole
from manyviews.runs.files import check_secrets, masked, printable, whole, without_credentials, write_text
from manyviews.runs.ledger import Attempt, goodput
from manyviews.runs.storage import load
from tests.process import Started, environment, gone, run
from tests.recipe import recipe, scalars, weights, write

slow = pytest.mark.slow
TWO_RANKS = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def await_(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "ended or silent too early"
        time.sleep(0.005)


@slow
def test_signals_to_any_subset_of_ranks(digits, tmp_path):
    """Twenty times SIGTERM, SIGUSR1 or SIGINT at a random moment to rank 0, rank 1 or both: never a hang, and the
    weights in the end are those of a run that was never stopped."""
    times, rng = 20, random.Random(0)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    where = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [str(tmp_path), str(digits), str(times)]
    ranks = [
        subprocess.Popen([sys.executable, "-m", "tests.interrupted", str(rank), *arguments], env=where, stderr=log)
        for rank in (0, 1)
        for log in [(tmp_path / f"{rank}.log").open("w")]
    ]
    subsets = [(0,), (1,), (0, 1)]
    try:
        for number in range(times):
            await_(lambda n=number: all((tmp_path / f"begun-{n}-{rank}").exists() for rank in (0, 1)), ranks[0])
            time.sleep(rng.uniform(0, 0.3))
            kind = rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
            for rank in subsets[number % 3]:
                ranks[rank].send_signal(kind)
            await_(lambda n=number: all((tmp_path / f"left-{n}-{rank}").exists() for rank in (0, 1)), ranks[0])
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["equal"] and result["steps"] == sorted(result["steps"])


@slow
@pytest.mark.parametrize("kind", ["raise", "silent"])
def test_one_faulty_rank_ends_the_run_and_is_named(digits, tmp_path, kind):
    """Rank 1 at step 12. Without Slurm: gloo's closed connection, or the timeout of collectives, ends rank 0.

    The timeout, 20 s, is shorter than what a busy machine needs to start both ranks; rank 1 starts 25 s late here. It
    holds from the first step on.
    """
    fault = {"class_path": "tests.recipe.Fault", "init_args": {"step": 12, "rank": 1, "kind": kind}}
    late = {"class_path": "tests.recipe.Late", "init_args": {"seconds": 25, "rank": 1}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[fault, late]))
    arguments = ["fit", "--config", config, "--run", tmp_path / "run", *TWO_RANKS, "--timeout", "20"]
    process = Started(*arguments, group=True)
    try:
        done = process.end(seconds=600)  # the limit of starting up is half an hour
    finally:
        process.send(signal.SIGKILL)  # the silent rank
    assert done.returncode != 0, done.stderr
    if kind == "raise":
        first, *rest = (tmp_path / "run/error.txt").read_text().splitlines()
        assert first.startswith("rank 1 of 2 on ") and first.endswith("step 12") and "injected" in rest[-1]
        assert "manyviews fit: rank 1 of 2" in done.stderr and "injected" in done.stderr
    assert newest_whole(tmp_path / "run/checkpoints").name == "step-00000010.ckpt"


@slow
@pytest.mark.parametrize(
    ("first", "second", "code"), [("TERM", "TERM", 143), ("INT", "INT", 130), ("USR1", "INT", 130)]
)
def test_a_second_signal_ends_at_once(digits, tmp_path, first, second, code):
    """A step that never ends (a dead file system, say) does not look at the first. The checkpoint that is there counts."""
    fault = {"class_path": "tests.recipe.Fault", "init_args": {"step": 12, "rank": 0, "kind": "silent"}}
    changes = {"trainer__callbacks": [fault], "data__workers": 1}
    config = write(tmp_path / "recipe.yaml", recipe(digits, **changes))
    process = Started("fit", "--config", config, "--run", tmp_path / "run", group=True)
    process.await_((tmp_path / "run/silent").exists)
    for number, name in enumerate((first, first, second) if first == "TERM" else (first, second)):
        os.kill(process.pid, getattr(signal, f"SIG{name}"))
        time.sleep(0.2 if number == 0 else 2.5)  # TERM twice within two seconds is meant once
        if number == 0 or (first == "TERM" and number == 1):
            assert process.process.is_alive()
    done = process.end(seconds=60)
    assert done.returncode == code, done.stderr
    assert "a second signal ends at once" in done.stderr and "the newest checkpoint counts" in done.stderr
    assert gone(process.pid) and newest_whole(tmp_path / "run/checkpoints").name == "step-00000010.ckpt"


@slow
def test_a_second_signal_ends_a_rank_that_waits_for_another(digits, tmp_path):
    """Rank 0 waits in a collective, where no Python runs; its limit is the default of a quarter of an hour."""
    fault = {"class_path": "tests.recipe.Fault", "init_args": {"step": 12, "rank": 1, "kind": "silent"}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[fault]))
    process = Started("fit", "--config", config, "--run", tmp_path / "run", *TWO_RANKS, group=True)
    process.await_((tmp_path / "run/silent").exists)
    time.sleep(5)  # in which rank 0 comes to wait for it
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(2.5)
    done = process.end(seconds=60)
    assert done.returncode == 143 and "the newest checkpoint counts" in done.stderr, done.stderr
    assert gone(process.pid) and newest_whole(tmp_path / "run/checkpoints").name == "step-00000010.ckpt"


@slow
def test_damaged_files_of_a_run_stop_neither_it_nor_what_reads_it(digits, tmp_path):
    """Empty after a power cut, cut, or of other types: told, and done without."""
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__max_steps=20))
    folder, arguments = tmp_path / "run", ["fit", "--config", config, "--run", tmp_path / "run"]
    assert run(*arguments).returncode == 0
    finished, kept = folder / "finished.json", (folder / "config.yaml").read_text()
    for text in ("", "{", "[]", '{"steps": "x"}', "null"):
        finished.write_text(text)
        done = run(*arguments)
        assert done.returncode == 0 and "finished.json is damaged" in done.stderr, done.stderr
        assert json.loads(finished.read_text())["steps"] == 20
    for text in ("", "[1", "- 1", kept[: len(kept) // 2], "[" * 10_000, "a: 2020-01-01"):
        (folder / "config.yaml").write_text(text)
        assert run(*arguments).returncode == 0
        other = run(*arguments, "--model.temperature", "0.3")  # the checkpoint knows what the run is
        assert other.returncode == 2 and "holds another experiment" in other.stderr, other.stderr
    (folder / "config.yaml").write_text(kept)
    finished.unlink()
    for number, text in enumerate(
        ["", "[]", '{"first_step": "x"}', '{"first_step": 1, "devices": 1, "step": null}', '{"a": 1}']
    ):
        (folder / f"attempts/000{number + 1}.json").write_text(text)
    done = run(*arguments)
    assert done.returncode == 0 and "ignored in the statistics" in done.stderr and finished.exists(), done.stderr


@slow
def test_credentials_reach_no_file(digits, tmp_path):
    config = write(tmp_path / "recipe.yaml", recipe(digits))
    for option in (
        ["--data.root", "http://user:hush@host/shards"],
        ["--data.cache_dir", "s3://key:hush@bucket/x"],
        ["--trainer.default_root_dir", "s3://key:hush@bucket/x"],
    ):
        done = run("fit", "--config", config, "--run", tmp_path / "run", *option)
        assert done.returncode == 2 and "hush" not in done.stderr and "environment" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
    knn = run("knn", "--run", tmp_path, "--data", "http://user:hush@host/x")
    assert knn.returncode == 2 and "hush" not in knn.stderr


def test_what_is_a_credential():
    for config in (
        {"logger": {"init_args": {"api_key": "x"}}},
        {"a": [{"password": "x"}]},
        {"HF_TOKEN": "x"},
        ["s3://k:x@b"],
    ):
        with pytest.raises(ValueError, match="environment"):
            check_secrets(config)
    check_secrets({"tokenizer": "x", "token": None, "tokens": 3, "keys": "x", "author": "x", "key": "x", "mail": "a@b"})
    assert without_credentials("--x=s3://k:x@b/c?y=1&token=2") == "--x=s3://***@b/c?y=1&token=***"
    assert without_credentials("https://u:p@ss@host/x") == "https://***@host/x"
    shown = masked(["--data.root", "a", "--x.api_key=hush", "--token", "hush", "--seed", "3", "http://u:hush@h"])
    assert shown == ["--data.root", "a", "--x.api_key=***", "--token", "***", "--seed", "3", "http://***@h"]
    assert printable("a\tb\nc\x1b[31m") == "a\\tb\\nc\\x1b[31m"


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path, how):
    """Also when the process is killed in the middle: what was there stays."""
    path = tmp_path / "x.json"
    write_text(path, "old")
    pid = os.fork()
    if pid == 0:
        try:
            with whole(path) as part:
                part.write_text("new")
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


@slow
def test_a_second_job_in_the_same_folder_is_refused(digits, tmp_path):
    pause = {"class_path": "tests.recipe.Slow", "init_args": {"seconds": 0.5}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[pause]))
    arguments = ["fit", "--config", config, "--run", tmp_path / "run"]
    first = Started(*arguments)
    try:
        first.await_((tmp_path / "run/checkpoints/step-00000010.ckpt").exists)
        second = run(*arguments)
        assert second.returncode == 2, second.stderr
        assert f"is in use by process {first.pid} on" in second.stderr and "give another --run" in second.stderr
        assert not (tmp_path / "run/error.txt").exists()
    finally:
        first.send(signal.SIGKILL)
        first.end()
    assert run(*arguments, "--trainer.max_time", "00:00:00:01").returncode == 0  # a killed job holds nothing


@slow
def test_a_full_disk_is_survived(digits, tmp_path, disk):
    """A tmpfs of 2 MB is full from step 15 to 35: the saves of steps 20 and 30 fail, the older ones stay, training goes
    on, and the run ends as the undisturbed one."""
    fill = {"class_path": "tests.recipe.FillDisk", "init_args": {"full": 15, "free": 35}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[fill]))
    done = run("fit", "--config", config, "--run", disk / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("not saved") == 2 and "failure 2 in a row" in done.stderr
    names = {path.name for path in (disk / "run/checkpoints").iterdir()}
    assert names == {f"step-{n:08d}.ckpt{beside}" for n in (40, 50, 60) for beside in ("", ".sha256")}
    whole = write(tmp_path / "whole.yaml", recipe(digits))
    assert run("fit", "--config", whole, "--run", tmp_path / "undisturbed").returncode == 0
    ours, theirs = weights(disk / "run"), weights(tmp_path / "undisturbed")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    here, there = (dict(scalars(folder)["train/loss"]) for folder in (disk / "run", tmp_path / "undisturbed"))
    assert set(here) >= {1, 5, 10, 50, 55, 60} and all(value == there[step] for step, value in here.items())


@slow
def test_a_last_checkpoint_that_cannot_be_saved_leaves_the_run_unfinished(digits, tmp_path, disk):
    fill = {"class_path": "tests.recipe.FillDisk", "init_args": {"full": 55, "free": 1000}}
    config = write(tmp_path / "recipe.yaml", recipe(digits, trainer__callbacks=[fill]))
    done = run("fit", "--config", config, "--run", disk / "run")
    assert done.returncode == 2 and "could not be saved" in done.stderr, done.stderr
    assert not (disk / "run/finished.json").exists()
    assert newest_whole(disk / "run/checkpoints").name == "step-00000050.ckpt"
    (disk / "ballast").unlink()
    again = run("fit", "--config", write(tmp_path / "plain.yaml", recipe(digits)), "--run", disk / "run")
    assert again.returncode == 0 and (disk / "run/finished.json").exists(), again.stderr


@slow
@pytest.mark.parametrize("where", ["header", "data", "between members", "closing blocks"])
def test_a_tar_cut_between_two_epochs(digits, tmp_path, where):
    """Either the run ends and names the shard, and with the tar restored goes on exactly; or nothing was lost."""
    import tarfile

    shards = shutil.copytree(digits, tmp_path / "digits")
    tar = sorted(shards.glob("*-train-*.tar"))[1]
    whole = tar.read_bytes()
    with tarfile.open(tar) as t:
        member = t.getmembers()[len(t.getmembers()) // 2]
        end = t.getmembers()[-1]
    after = end.offset_data + -(-end.size // 512) * 512
    size = {
        "header": member.offset + 100,
        "data": member.offset_data + max(1, member.size // 2),
        "between members": member.offset,
        "closing blocks": after,
    }[where]
    cut = {"path": str(tar), "size": size, "once": str(tmp_path / "cut")}
    callbacks = [{"class_path": "tests.recipe.CutShard", "init_args": cut}]
    config = write(tmp_path / "recipe.yaml", recipe(shards, trainer__callbacks=callbacks))
    done = run("fit", "--config", config, "--run", tmp_path / "run")
    assert tar.stat().st_size == size
    if where == "closing blocks":
        assert done.returncode == 0, done.stderr  # no sample is in them
        refused = run("fit", "--config", config, "--run", tmp_path / "other")
        assert refused.returncode == 2 and tar.name in refused.stderr
    else:
        assert done.returncode == 2 and tar.name in done.stderr, done.stderr
        assert newest_whole(tmp_path / "run/checkpoints") is not None
        tar.write_bytes(whole)
        again = run("fit", "--config", config, "--run", tmp_path / "run")
        assert again.returncode == 0, again.stderr
    tar.write_bytes(whole)
    plain = write(tmp_path / "plain.yaml", recipe(shards))
    assert run("fit", "--config", plain, "--run", tmp_path / "plain").returncode == 0
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_byte_of_a_checkpoint_never_gives_other_weights(tmp_path, sealed):
    """300 places of the file, one byte each: all told of by the checksum beside the file.

    A checkpoint that came without (copied, say) has those of its own format: told of, or without effect.
    """
    state = {"state_dict": {f"w{i}": torch.randn(40, 7) for i in range(5)}, "epoch": 3, "text": "some text"}
    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(state, path)
    if not sealed:
        path.with_suffix(".ckpt.sha256").unlink()
    whole, rng, told = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = load(path)
        except (ValueError, RuntimeError):
            told += 1
            continue
        assert found["epoch"] == 3 and found["text"] == "some text"
        assert all(torch.equal(found["state_dict"][name], state["state_dict"][name]) for name in state["state_dict"])
    assert told == 300 if sealed else told > 100
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            load(path)


def test_goodput():
    assert goodput([Attempt(0, 2, step=100)]) == 1.0
    assert goodput([Attempt(0, 2, step=100), Attempt(80, 2, step=200)]) == pytest.approx(200 / 220)
    assert goodput([Attempt(0, 1, step=0)]) == 1.0


@slow
def test_a_killed_start_is_accounted_for(digits, tmp_path):
    """Killed after step 30, resumed at 30: the steps since are made twice, and the last line says so."""
    pause = {"class_path": "tests.recipe.Slow", "init_args": {"seconds": 0.02}}
    changes = {"trainer__callbacks": [pause], "checkpoints__every_n_steps": 30}
    config = write(tmp_path / "recipe.yaml", recipe(digits, **changes))
    arguments = ["fit", "--config", config, "--run", tmp_path / "run"]
    first, account = Started(*arguments), tmp_path / "run/attempts/0001.json"
    first.await_(lambda: account.exists() and json.loads(account.read_text())["step"] >= 40)
    first.send(signal.SIGKILL)
    first.end()
    made = json.loads(account.read_text())
    again = run(*arguments)
    assert again.returncode == 0
    expected = 60 / (made["step"] + 30)
    assert json.loads((tmp_path / "run/finished.json").read_text())["goodput"] == pytest.approx(expected)
    assert f"starts: 2, goodput {100 * expected:.1f} %" in again.stderr and "device hours" in again.stderr
    assert made["samples"] == 64 * made["step"] and 0 <= made["waited"] < made["seconds"]
