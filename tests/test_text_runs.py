"""Images with texts from a table to numbers: packed, trained, seen in TensorBoard, searched, loaded by open_clip."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manyviews.cli import main
from tests.recipe import scalars
from viewshards.cli import main as viewshards
from viewshards.sources.generated import Shapes

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[1] / "experiments" / "clip" / "shapes.yaml"
BANK = {"templates": ["a {c}", "a small {c}"], "classnames": {"square": "square"}}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The raw data of a user: pictures in a folder, and a CSV with a caption, a hard one and a class for each."""
    folder = tmp_path_factory.mktemp("raw")
    made, rows = Shapes(), []
    of_split = {split: [i for i, (_, s) in enumerate(made.samples) if s == split] for split in ("train", "val")}
    for split, count in (("train", 640), ("val", 60)):
        for i in of_split[split][:count]:
            files = made.files(i)
            about = json.loads(files["json"])
            (folder / f"{i}.png").write_bytes(files["png"])
            rows.append(
                {
                    "file_name": f"{i}.png",
                    "caption": files["txt"].decode(),
                    "hard_captions": json.dumps(about["hard_captions"][0]),
                    "label": made.kinds[int(files["cls"])],
                    "split": split,
                }
            )
    with open(folder / "captions.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / "captions.csv"


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    """Packed and trained for 120 steps, evaluated on the way; returns (run, shards, bank)."""
    folder = tmp_path_factory.mktemp("text")
    assert viewshards(["pack", str(table), str(folder / "shards")]) == 0
    (folder / "bank.json").write_text(json.dumps(BANK))
    config = yaml.safe_load(RECIPE.read_text())
    config["data"]["init_args"] |= {"root": str(folder / "shards"), "workers": 0}
    protocols = [
        {"class_path": "manyviews.evaluation.TextRetrieval"},
        {"class_path": "manyviews.evaluation.ZeroShot", "init_args": {"bank": str(folder / "bank.json")}},
    ]
    evaluation = {"class_path": "manyviews.evaluation.Evaluation", "init_args": {"every_n_epochs": 6}}
    evaluation["init_args"]["protocols"] = protocols
    config["trainer"] |= {"max_steps": 120, "callbacks": [evaluation], "accelerator": "cpu"}
    config["checkpoints"] = {"every_n_steps": 60, "monitor": "val/t2i_r10"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "recipe.yaml"), "--run", str(folder / "run")]) == 0
    return folder / "run", folder / "shards", folder / "bank.json"


def printed(capsys, *arguments):
    """The scores a command prints, by name, and all it prints."""
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    assert code == 0, out.err
    found = re.findall(r"^(\w+) (\d\.\d+)(?=$|  )", out.out, re.M)
    return {name: float(value) for name, value in found}, out.out


def test_zero_shot_and_retrieval_are_in_tensorboard(trained):
    run, _, _ = trained
    curves = scalars(run)
    assert {"val/t2i_r1", "val/i2t_r10", "val/zeroshot_top1", "train/logit_scale", "train/loss_floor"} <= curves.keys()
    assert {"similarity/positive_mean", "representation/gap"} <= curves.keys()
    steps = [step for step, _ in curves["val/zeroshot_top1"]]
    assert steps == [60, 120]
    events = EventAccumulator(str(run))
    events.Reload()
    assert "pictures/confusion_zeroshot_bank" in events.Tags()["images"]
    losses = [value for _, value in curves["train/loss"]]
    assert losses[-1] < 0.7 * losses[0]
    for way in ("i2t", "t2i"):  # unseen combinations, chance 1 in 60; 0.7 and 0.8 when this was written
        assert curves[f"val/{way}_r1"][-1][1] > 0.3


def test_the_numbers_of_the_run_and_of_the_commands_are_one(trained, capsys):
    run, _, bank = trained
    curves = scalars(run)
    shot, _ = printed(capsys, "zeroshot", "--run", run, "--bank", bank, "--device", "cpu")
    found, _ = printed(capsys, "retrieve", "--run", run, "--device", "cpu")
    for scores in (shot, found):
        assert scores
        for name, value in scores.items():
            assert value == pytest.approx(curves[f"val/{name}"][-1][1], abs=1e-4), name
    (file,) = (run / "evaluations").glob("zeroshot_bank-*-shards-*-cls-step-00000120.json")
    stored = json.loads(file.read_text())
    assert stored["protocol"]["bank"] == str(bank) and len(stored["details"]["prompts"]) == len(BANK["templates"])
    assert stored["chance"]["zeroshot_top1"] == 1 / 4 and len(stored["interval_95"]["zeroshot_top1"]) == 2
    assert stored["details"]["per_class"].keys() == {"circle", "square", "triangle", "star"}


def test_open_clip_loads_what_was_trained(trained, capsys, tmp_path):
    run, shards, bank = trained
    _, out = printed(capsys, "export", "--run", run, "--out", tmp_path / "clip", "--open-clip", "--device", "cpu")
    assert "loaded back by open_clip, features differ by" in out
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=32)(["a small red circle left of a large blue square"])
    pixels = preprocess(Image.fromarray(np.full((48, 48, 3), 200, np.uint8)))[None]
    model.eval()
    with torch.no_grad():
        assert (model.encode_image(pixels) @ model.encode_text(tokens).T).shape == (1, 1)
    ours, _ = printed(capsys, "zeroshot", "--run", run, "--bank", bank, "--device", "cpu")
    command = ["zeroshot", "--pretrained", tmp_path / "clip", "--data", shards, "--bank", bank, "--device", "cpu"]
    theirs, _ = printed(capsys, *command, "--json", tmp_path / "zero.json", "--workers", "0")
    assert theirs == ours and ours
    assert main(["zeroshot", "--pretrained", str(tmp_path / "gone"), "--data", str(shards)]) == 2
    assert "not there; --pretrained takes an open_clip folder" in capsys.readouterr().err
    assert main(["zeroshot", "--pretrained", str(tmp_path / "clip")]) == 2
    assert "--pretrained needs --data" in capsys.readouterr().err


def test_views_that_would_be_compared_with_nothing_are_refused(trained, tmp_path, capsys):
    config = yaml.safe_load((trained[0] / "config.yaml").read_text())
    for key in ("run", "checkpoints"):
        config.pop(key)
    config["trainer"]["callbacks"] = None
    for name, value, message in (
        ("views", 3, "CLIP takes 1 text of a sample, got 3: set data.text"),
        ("hard", 2, "CLIP reads no hard captions"),
    ):
        changed = json.loads(json.dumps(config))
        changed["data"]["init_args"]["text"]["init_args"] |= {"augmentations": None, "views": 1, name: value}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
        assert main(["fit", "--config", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "interpolation", "mean"), [("squash", "bicubic", 0.5), ("longest", "bilinear", 0.3), ("shortest", "bicubic", 0.5)]
)  # fmt: skip
def test_an_open_clip_folder_is_evaluated_to_the_last_prediction(trained, tmp_path, capsys, mode, interpolation, mean):
    """Pictures of all shapes through the folder's own preprocessing: what open_clip predicts for each of them."""
    run, _, bank = trained
    printed(capsys, "export", "--run", run, "--out", tmp_path / "clip", "--open-clip", "--device", "cpu")
    config = tmp_path / "clip" / "open_clip_config.json"
    about = json.loads(config.read_text())
    about["preprocess_cfg"] |= {
        "resize_mode": mode, "interpolation": interpolation, "mean": [mean] * 3, "std": [0.2, 0.25, 0.3],
    }  # fmt: skip
    config.write_text(json.dumps(about))
    g, made, shapes = np.random.default_rng(0), Shapes(), ((90, 48), (48, 90), (61, 48), (30, 40), (48, 48))
    for i in range(60):
        sample = made.files(i)
        pixels = Image.open(io.BytesIO(sample["png"])).convert("RGB")
        noise = Image.fromarray(g.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(pixels.size)
        file = tmp_path / "raw" / "val" / made.kinds[int(sample["cls"])] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(pixels, noise, 0.3).resize(shapes[i % 5]).save(file)
    assert viewshards(["pack", str(tmp_path / "raw"), str(tmp_path / "shards")]) == 0
    capsys.readouterr()
    command = ["zeroshot", "--pretrained", tmp_path / "clip", "--data", tmp_path / "shards", "--bank", bank]
    ours, _ = printed(capsys, *command, "--device", "cpu", "--json", tmp_path / "zero.json")
    kept = json.loads((tmp_path / "zero.json").read_text())["details"]["per_class"]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    classes, templates = sorted(kept), [lambda c: f"a {c}", lambda c: f"a small {c}"]
    right = {name: [] for name in classes}
    with torch.no_grad():
        texts = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, classes, templates, device="cpu")
        for file in sorted((tmp_path / "raw").rglob("*.png")):
            image = model.encode_image(preprocess(Image.open(file))[None], normalize=True)
            right[file.parent.name].append(classes[int((image @ texts).argmax())] == file.parent.name)
    assert kept == pytest.approx({name: np.mean(each) for name, each in right.items()}, abs=1e-6)
    assert ours["zeroshot_top1"] == pytest.approx(
        np.mean([each for found in right.values() for each in found]), abs=1e-4
    )
    assert 0.1 < ours["zeroshot_top1"] < 0.95  # some of both


def test_a_run_is_searched_by_text_and_by_image(trained, table, capsys, tmp_path):
    run, _, _ = trained
    text = ("search", "--run", run, "--text", "a large red circle left of a small blue square", "--k", "8")
    _, first = printed(capsys, *text, "--out", tmp_path / "text.png", "--device", "cpu")
    assert "index of 60 images" in first and len([line for line in first.splitlines() if "  " in line]) == 8
    with Image.open(tmp_path / "text.png") as sheet:
        assert sheet.size[0] >= 8 * 96
    _, again = printed(capsys, *text, "--out", tmp_path / "text.png", "--device", "cpu")
    assert again == first.partition("\n")[2]  # the index is kept
    # Of a set of the same name and counts whose pictures are others another index is made; a damaged one is made again.
    other = tmp_path / "other/shards"
    raw = shutil.copytree(table.parent, tmp_path / "raw")
    for path in raw.glob("*.png"):
        with Image.open(path) as image:
            turned = image.rotate(180)
        turned.save(path)
    assert viewshards(["pack", str(raw / table.name), str(other)]) == 0
    capsys.readouterr()
    _, elsewhere = printed(capsys, *text, "--data", other, "--out", tmp_path / "text.png", "--device", "cpu")
    assert "index of 60 images" in elsewhere
    for kept in (run / "search").glob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:500])
    _, again = printed(capsys, *text, "--out", tmp_path / "text.png", "--device", "cpu")
    assert "not readable" in again and again.partition("index of")[2] == first.partition("index of")[2]
    shard = Shapes()
    some = next(i for i, (_, split) in enumerate(shard.samples) if split == "val")
    Image.open(io.BytesIO(shard.files(some)["png"])).save(tmp_path / "query.png")
    image = ("search", "--run", run, "--image", tmp_path / "query.png", "--k", "3", "--out", tmp_path / "i.png")
    _, found = printed(capsys, *image, "--device", "cpu")
    score, key = found.splitlines()[0].split()
    assert float(score) == pytest.approx(1.0, abs=1e-4) and key == str(some)
    assert main(["search", "--run", str(run)]) == 2 and "--text WORDS or --image FILE" in capsys.readouterr().err


def test_cells_are_mined_and_trained_on(trained, capsys, tmp_path):
    run, _, _ = trained
    for kind, width in (("neighbours", 4), ("owners", 4)):
        out = tmp_path / f"{kind}.npz"
        printed(capsys, "mine", "--run", run, "--kind", kind, "--k", "3", "--out", out, "--device", "cpu")
        cells = np.load(out)["numbers"]
        assert cells.shape[1] == width and set(cells[cells >= 0].tolist()) == set(range(640))
    config = ["--config", str(run / "config.yaml"), "--run", str(tmp_path / "again")]
    options = ["--data.cells", str(tmp_path / "neighbours.npz"), "--data.cell_samples", "2", "--trainer.max_steps", "2"]
    assert main(["fit", *config, *options, "--trainer.callbacks", "[]", "--checkpoints.monitor", "null"]) == 0
    assert main(["mine", "--run", str(run), "--out", "x.txt"]) == 2 and "ends in .npz" in capsys.readouterr().err


def test_transfer_and_composition(trained, capsys, tmp_path):
    run, _, _ = trained
    scores, _ = printed(capsys, "transfer", "--run", run, "--device", "cpu")
    assert scores.keys() == {"text_to_image", "text_to_text", "image_to_image"}
    assert scores["image_to_image"] > 0.3 and scores["text_to_text"] > 0.3  # of four shapes, the first thing's
    assert main(["composition", "--run", str(run)]) == 2  # the table has no cases
    assert "needs samples with `cases`" in capsys.readouterr().err
    assert viewshards(["pack", "builtin:shapes", str(tmp_path / "shapes")]) == 0
    command = ("composition", "--run", run, "--data", tmp_path / "shapes", "--split", "val", "--device", "cpu")
    scores, _ = printed(capsys, *command)
    kinds = {"attribute", "relation", "order"}
    assert scores.keys() == kinds | {f"{kind}_text_only" for kind in kinds}
    assert scores["order"] > 0.5 and scores["order_text_only"] > 0.9  # shuffled words are seen without eyes


def test_a_report_of_images_and_texts(trained, capsys):
    run, _, bank = trained
    _, out = printed(capsys, "report", "--run", run, "--bank", bank, "--device", "cpu")
    stored = json.loads(next((run / "evaluations").glob("report-*.json")).read_text())["scores"]
    assert stored.keys() == {"trained encoder", "untrained encoder", "raw pixels"}
    assert "zero-shot" in out and "zeroshot_top1" in stored["trained encoder"]
    assert "zeroshot_top1" not in stored["raw pixels"]
    assert stored["trained encoder"]["t2i_r10"] > stored["untrained encoder"]["t2i_r10"]
