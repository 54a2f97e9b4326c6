"""Zero-shot, retrieval, composition, transfer in the joint space: worked numbers, dense references, ties, ranks."""

import json
import math
import re
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from manyviews import distributed
from manyviews.backbones import Encoding
from manyviews.distributed import simulate
from manyviews.evaluation import KNN, Accuracy, Composition, LinearProbe, Result, TextRetrieval, TextToImage, ZeroShot
from manyviews.evaluation.close import MeanShift, ModalityGapNoise, _features
from manyviews.evaluation.composition import ARO, Bigrams, _captions, arranged, verdict
from manyviews.evaluation.joint import embed_texts
from manyviews.evaluation.linear import split
from manyviews.evaluation.protocol import chance_at, result_path, wilson
from manyviews.mining import neighbour_cells, owner_cells
from manyviews.similarity import unit


def at(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)


class Plane(nn.Module):
    """Images and texts that are angles already: an image is (1, 1, 2), a text a number of degrees."""

    device = torch.device("cpu")

    def embed_image(self, images):
        return Encoding(unit(images.flatten(1)))

    def embed_text(self, ids):
        return Encoding(at(*ids[:, 0].tolist()))

    def similarity(self, images, texts):
        scores = images.pooled @ texts.pooled.T
        return scores, scores


class Told:
    """Texts are what stands in them, in degrees; batches of two samples, the last one padded."""

    def __init__(self, images, captions=None, label=None, group=None, classes=(), cases=None, views=1):
        n = len(images) // views
        self.classes, self.n, self.views = list(classes), n, views
        self.samples = [
            {
                "image": [images[v * n + i].view(1, 1, 2) for v in range(views)],
                "text": [[c] for c in (captions[i] if captions else [0])],
                "label": -1 if label is None else label[i],
                "group": -1 if group is None else group[i],
                "index": i,
                "weight": 1.0,
                **({"cases": cases[i]} if cases else {}),
            }
            for i in range(n)
        ]

    def tokens(self, texts):
        return torch.tensor([[float(text)] for text in texts])

    def picture(self, path):
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    def evaluation_loader(self, split, batch_size=2, world=1, rank=0):
        blank = {**self.samples[0], "index": -1, "label": -1, "group": -1, "weight": 0.0}
        longest = max(len(s["text"]) for s in self.samples)
        for step in range(-(-self.n // (batch_size * world))):  # as many batches on every rank, some of padding alone
            start = (step * world + rank) * batch_size
            chosen = [self.samples[i] if i < self.n else blank for i in range(start, start + batch_size)]
            yield {
                "image": [torch.stack([s["image"][v] for s in chosen]) for v in range(self.views)],
                "text": [torch.tensor([s["text"][min(m, len(s["text"]) - 1)] for s in chosen]) for m in range(longest)],
                "text_present": torch.tensor([[m < len(s["text"]) for m in range(longest)] for s in chosen]),
                "captions": [[str(c) for (c,) in s["text"]] for s in chosen],
                **{name: torch.tensor([s[name] for s in chosen]) for name in ("label", "group", "index", "weight")},
                **({"cases": [s["cases"] for s in chosen]} if "cases" in chosen[0] else {}),
            }

    def transfer_batch_to_device(self, batch, device, _):
        return batch

    def on_after_batch_transfer(self, batch, _):
        return batch

    def of_picture(self, picture):
        return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


def bank(tmp_path, templates, **classnames):
    path = tmp_path / "bank.json"
    path.write_text(json.dumps({"templates": templates, "classnames": classnames}))
    return str(path)


# Zero-shot.


def test_a_class_lies_between_its_prompts(tmp_path):
    data = Told(at(0, 0), classes=["a", "b"])
    zero = ZeroShot(bank(tmp_path, ["1{c}", "5{c}"], a="0", b="00"))  # 10 and 50 degrees; 100 and 500
    texts = zero._classifier(Plane(), data, zero.read(data.classes)[1])
    torch.testing.assert_close(texts.pooled, at(30, 120))


def test_prompts_are_normalised_before_they_are_averaged(tmp_path):
    class Long(Plane):
        def embed_text(self, ids):
            return Encoding(unit(torch.where(ids == 0, torch.tensor([1.0, 0]), torch.tensor([0, 3.0]))))

    data = Told(at(0, 0), classes=["x"])
    zero = ZeroShot(bank(tmp_path, ["{c}", "9{c}"], x="0"))
    texts = zero._classifier(Long(), data, zero.read(data.classes)[1])
    torch.testing.assert_close(texts.pooled, torch.full((1, 2), math.sqrt(0.5)))


def test_zero_shot_counts(tmp_path):
    """Images at 0, 80, 100, 170, 30 of classes 0, 0, 1, 1 and unknown; classes at 0, 90 and 180."""
    names = {"zero": "0", "up": "90", "back": "180"}
    data = Told(at(0, 80, 100, 170, 30), label=[0, 0, 1, 1, -1], classes=list(names))
    path = bank(tmp_path, ["{c}"], **names)
    result = ZeroShot(path, (1, 2)).measure(Plane(), data)
    assert result.scores == {"zeroshot_top1": 0.5, "zeroshot_top2": 1.0}
    assert result.details["per_class"] == {"zero": 0.5, "up": 0.5} and result.details["images"] == 4
    assert result.details["largest_class"] == 0.5 and result.details["ties"] == 0
    assert result.confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_equal_names_are_counted_as_ties(tmp_path):
    names = {"one": "10", "two": "10"}
    data = Told(at(10, 10), label=[0, 1], classes=list(names))
    result = ZeroShot(bank(tmp_path, ["{c}"], **names), (1,)).measure(Plane(), data)
    assert result.scores["zeroshot_top1"] == 0.5  # the earlier class has it
    assert result.details["ties"] == 2


def test_banks(tmp_path):
    assert len(ZeroShot("openai").read(["a_b"])[1][0]) == 80 and len(ZeroShot("simple").read(["a"])[1][0]) == 7
    assert ZeroShot("openai").read(["a_b"])[0] == ["a b"]
    names, _ = ZeroShot("openai").read([str(i) for i in range(1000)])
    assert names.count("missile") == 2 and len(names) == 1000
    as_folders_are_sorted, _ = ZeroShot("openai").read(sorted(str(i) for i in range(1000)))
    assert as_folders_are_sorted[2] == names[10] == "brambling"
    with pytest.raises(ValueError, match="expected plain, openai, simple, or a JSON file"):
        ZeroShot("nowhere.json").read([])
    (tmp_path / "b.json").write_text(json.dumps({"template": []}))
    with pytest.raises(ValueError, match="unknown key 'template'; did you mean 'templates'"):
        ZeroShot(str(tmp_path / "b.json")).read([])
    with pytest.raises(ValueError, match="no class is called 'c' here"):
        ZeroShot(bank(tmp_path, ["{c}"], c="d")).read(["a"])
    with pytest.raises(ValueError, match="no sample of the val split has one"):
        ZeroShot(bank(tmp_path, ["{c}"], a="1")).measure(Plane(), Told(at(0, 1), classes=["a"]))
    with pytest.raises(ValueError, match="needs names of the classes"):
        ZeroShot().measure(Plane(), Told(at(0, 1)))


# Retrieval.


def test_several_captions_of_an_image():
    """Images at 0 and 60, captions at 5 and 40 of the first, 55 and 20 of the second."""
    data = Told(at(0, 60), captions=[[5.0, 40.0], [55.0, 20.0]])
    found = TextRetrieval((1, 2)).measure(Plane(), data)
    assert found.scores == {"i2t_r1": 1.0, "i2t_r2": 1.0, "t2i_r1": 0.5, "t2i_r2": 1.0}
    assert found.details["captions"] == 4 and found.details["t2i_mean_rank"] == 1.5


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("chunk", [3, 256])
def test_ranks_of_a_dense_reference(monkeypatch, views, chunk):
    monkeypatch.setattr("manyviews.evaluation.joint.CHUNK", chunk)
    g = torch.Generator().manual_seed(0)
    n = 11
    images = at(*torch.randint(0, 360, (n * views,), generator=g).tolist())
    captions = [torch.randint(0, 360, (1 + i % 3,), generator=g).double().tolist() for i in range(n)]
    group = [5 if i in (2, 7) else -1 for i in range(n)]
    data = Told(images, captions, group=group, views=views)
    texts = [(i, c) for i, own in enumerate(captions) for c in own]
    pictures = [(v * n + i, i) for v in range(views) for i in range(n)]

    def rank(query, items, is_right):  # wrong items ahead of the best right one; no two scores are equal here
        scores = [(float(query @ z), is_right(item)) for z, item in items]
        best = max(s for s, right in scores if right)
        return sum(s > best for s, right in scores if not right)

    def right(image, text):
        (i, caption) = text
        return i == image or group[i] == group[image] >= 0 or caption in captions[image]

    of_text = [(at(c)[0], (i, c)) for i, c in texts]
    of_image = [(images[p], i) for p, i in pictures]
    expected = {
        "i2t": [rank(z, of_text, lambda text, i=i: right(i, text)) for z, i in of_image],
        "t2i": [rank(z, of_image, lambda i, text=text: right(i, text)) for z, text in of_text],
    }
    found = TextRetrieval().measure(Plane(), data)
    for way, ranks in expected.items():
        for k in (1, 5, 10):
            assert found.scores[f"{way}_r{k}"] == pytest.approx(sum(r < k for r in ranks) / len(ranks))
        assert found.details[f"{way}_mean_rank"] == pytest.approx(sum(ranks) / len(ranks) + 1)


def test_an_equal_score_counts_where_it_stands_earlier():
    """All at one place: the first sample's query wins, the last one's item has all others before it."""
    data = Told(at(0, 0, 0), captions=[[0.0], [360.0], [720.0]])
    assert TextRetrieval((1, 2, 3)).measure(Plane(), data).scores["t2i_r1"] == pytest.approx(1 / 3)
    assert TextRetrieval((1, 2, 3)).measure(Plane(), data).scores["t2i_r2"] == pytest.approx(2 / 3)


def test_equal_captions_are_right_answers():
    """Images at 0, 4 and 90; the first two read alike: each finds the other's caption, and that caption either image."""
    data = Told(at(4, 0, 90), captions=[[0.0], [0.0], [90.0]])
    found = TextRetrieval((1,)).measure(Plane(), data)
    assert found.scores == {"i2t_r1": 1.0, "t2i_r1": 1.0} and found.details["texts"] == 2
    # Two of three captions are right for two of the images, and one for the third; the other way round alike.
    assert found.chance == pytest.approx({"i2t_r1": 5 / 9, "t2i_r1": 5 / 9})
    assert found.trials == {"i2t_r1": 3, "t2i_r1": 3}
    other = Told(at(4, 0, 90), captions=[[0.0], [1.0], [90.0]])
    assert TextRetrieval((1,)).measure(Plane(), other).scores["t2i_r1"] == pytest.approx(2 / 3)


def test_classes_stand_in_for_captions(tmp_path):
    """Five images of two classes and one of none, and no captions: each class asks once."""
    data = Told(at(0, 10, 96, 80, 85, 40), captions=[[0.0]] * 6, label=[0, 0, 0, 1, 1, -1], classes=["zero", "up"])
    loader = data.evaluation_loader
    data.evaluation_loader = lambda *a, **k: ({**b, "text_present": b["text_present"] & False} for b in loader(*a, **k))
    found = TextRetrieval((1, 2, 3), bank(tmp_path, ["{}"], zero="0", up="90")).measure(Plane(), data)
    assert found.details["captions"] == 2 and found.details["images"] == 6
    assert found.scores["t2i_r1"] == 1.0  # 0 finds an image at 0; 90 finds one of its own at 85 before that at 96
    assert found.scores["i2t_r1"] == pytest.approx(4 / 5)  # the image at 96 is nearer to the other class
    assert found.chance["i2t_r1"] == 1 / 2 and found.chance["t2i_r1"] == pytest.approx((3 / 6 + 2 / 6) / 2)
    assert found.trials["i2t_r1"] == 5 and found.trials["t2i_r1"] == 2
    data.classes = []
    with pytest.raises(ValueError, match="no sample of val has a caption, and there are no names of classes"):
        TextRetrieval().measure(Plane(), data)


def test_what_retrieval_asks_with_is_known_at_the_start(tmp_path):
    data = Told(at(0, 90), captions=[[0.0], [90.0]], classes=["zero", "up"], label=[0, 1])
    file = bank(tmp_path, ["{}"], zero="0", up="90")
    with pytest.raises(ValueError, match="with the captions that samples have, and bank '.*bank.json' is not used"):
        TextRetrieval(bank=file).ready(Plane(), data)
    TextRetrieval().ready(Plane(), data)
    loader = data.evaluation_loader
    data.evaluation_loader = lambda *a, **k: ({**b, "text_present": b["text_present"] & False} for b in loader(*a, **k))
    TextRetrieval(bank=file).ready(Plane(), data)
    data.text = SimpleNamespace(languages=["de"])
    assert TextRetrieval((1,), file).measure(Plane(), data).scores["t2i_r1"] == 1.0  # by its classes
    data.evaluation_loader = lambda *a, **k: (
        {**b, "text_present": b["text_present"] & False, "text_unspoken": b["label"] == 0} for b in loader(*a, **k)
    )
    with pytest.raises(ValueError, match=r"captions of val are in other languages than de \(data.text.language\)"):
        TextRetrieval((1,), file).measure(Plane(), data)


def test_templates(tmp_path):
    for templates, prompts in (
        (["a {}.", "one {c}"], [["a cat.", "one cat"], ["a big dog.", "one big dog"]]),
        ({"cat": ["meow"], "big_dog": ["woof {}"]}, [["meow"], ["woof big dog"]]),
        (["{c.__class__} {}"], [["{c.__class__} cat"], ["{c.__class__} big dog"]]),
    ):
        assert ZeroShot(bank(tmp_path, templates)).read(["cat", "big_dog"])[1] == prompts
    for templates, message in (
        (["a photo"], "template 'a photo' has no place for the class: write {} or {c}"),
        (["{0}"], "has no place for the class"),
        ([], "every class needs templates"),
        ({"cat": ["a"], "big_dog": ["b", "c"]}, "as many as the others"),
        ({"cat": ["a"]}, "no templates for class 'big_dog'"),
        ({"cat": ["a"], "big_dog": ["b"], "dog": ["c"]}, "no class is called 'dog' here"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ZeroShot(bank(tmp_path, templates)).ready(Plane(), Told(at(0), classes=["cat", "big_dog"]))


def test_every_setting_has_a_file_of_its_own(tmp_path):
    class Data:
        root, label = "a/shards", "cls"

    class Others(Data):
        def shards_of(self, split):
            return type("Set", (), {"fingerprint": {"samples": 3}})

    for folder in "ab":
        (tmp_path / folder).mkdir()
    banks = [bank(tmp_path / folder, [f"{folder} {{c}}"]) for folder in "ab"]
    protocols = [
        KNN(), KNN((5,), (0.1,)), KNN((6,), (0.1,)), ZeroShot(), ZeroShot("openai"), *map(ZeroShot, banks),
        Composition(), Composition("test"), TextRetrieval(), LinearProbe(), LinearProbe(epochs=3),
    ]  # fmt: skip
    paths = [result_path(tmp_path, protocol, data, 3) for protocol in protocols for data in (Data(), Others())]
    assert len(set(paths)) == len(paths) == 24
    assert paths[0].name == "knn-shards-cls-step-00000003.json"


def test_intervals():
    """Wilson's, of 9 right in 10 and of none in 20; and none where a score is no share."""
    assert wilson(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    result = Result({"knn5": 0.9, "other": 3.0}, chance={"knn5": 0.1}, trials={"knn5": 10})
    assert result.intervals() == {"knn5": wilson(0.9, 10)}


def test_chance_with_several_right_items():
    """By counting all draws of k of 6 items: of one query 2 are right, of the other 5."""
    for k in (1, 2, 3, 7):
        draws = list(combinations(range(6), min(k, 6)))
        dense = [sum(any(item < right for item in draw) for draw in draws) / len(draws) for right in (2, 5)]
        assert chance_at(torch.tensor([2, 5]), 6, k) == pytest.approx(sum(dense) / 2)


def test_views_of_a_sample_are_one_trial(tmp_path):
    data = Told(at(0, 80, 10, 100), label=[0, 1], classes=["zero", "up"], views=2)
    result = ZeroShot(bank(tmp_path, ["{}"], zero="0", up="90"), (1, 5)).measure(Plane(), data)
    assert result.confusion.sum() == 4 and result.trials["zeroshot_top1"] == 2
    assert result.chance["zeroshot_top1"] == 0.5


@pytest.mark.parametrize("world", [2, 3, 5])  # with 5 the last rank has padding only
def test_ranks_share_the_work_and_agree(monkeypatch, tmp_path, world):
    g = torch.Generator().manual_seed(1)
    degrees = torch.randint(0, 360, (7,), generator=g).double().tolist()
    data = Told(at(*degrees), [[d + 20] for d in degrees], [0, 1, 0, 1, 1, 0, -1], classes=["a", "b"])
    zero = ZeroShot(bank(tmp_path, ["{c}"], a="0", b="180"))
    alone = TextRetrieval().measure(Plane(), data), zero.measure(Plane(), data)
    local = distributed.current

    def rank(gather):
        return TextRetrieval().measure(Plane(), data), zero.measure(Plane(), data)

    import threading

    own = threading.local()
    monkeypatch.setattr("manyviews.distributed.current", lambda: getattr(own, "gather", local()))

    def run(gather):
        own.gather = gather
        return rank(gather)

    for retrieval, shot in simulate(world, run):
        assert retrieval.scores == pytest.approx(alone[0].scores)
        assert shot.scores == pytest.approx(alone[1].scores)
        assert torch.equal(shot.confusion, alone[1].confusion)


def test_nothing_beats_what_is_no_number(tmp_path):
    data = Told(torch.full((3, 2), torch.nan, dtype=torch.float64), [[0.0]] * 3, [0, 1, 0], classes=["0", "90"])
    for protocol in (TextRetrieval(), ZeroShot(bank(tmp_path, ["{c}"]))):
        with pytest.raises(FloatingPointError, match="not finite"):
            protocol.measure(Plane(), data)


def test_what_cannot_be_measured_is_said_before_training(tmp_path):
    data = Told(at(0, 0), classes=["a"])
    ZeroShot().ready(Plane(), data)
    with pytest.raises(ValueError, match="expected plain, openai, simple, or a JSON file"):
        ZeroShot(str(tmp_path / "none.json")).ready(Plane(), data)
    with pytest.raises(ValueError, match="needs names of the classes"):
        ZeroShot().ready(Plane(), Told(at(0, 0)))
    with pytest.raises(ValueError, match="TextRetrieval needs a method with texts, not Linear"):
        TextRetrieval().ready(nn.Linear(1, 1), data)
    with pytest.raises(ValueError, match="Linear does not classify"):
        Accuracy().ready(nn.Linear(1, 1), data)


# Composition.


def test_composition_and_its_ties():
    """True captions at 0, false ones at 40 (right), 0 (a tie), -5 while the image lies at -4 (wrong)."""
    cases = [{"true": "0", "attribute": "40", "order": ["0", "40"]}, {"true": "0", "attribute": "0", "order": "0"},
             {"true": "0", "attribute": "-5", "order": "-5"}]  # fmt: skip
    data = Told(at(-4, -4, -4), cases=cases)
    found = Composition().measure(Plane(), data)
    assert found.scores["attribute"] == pytest.approx(1 / 3)  # a tie is wrong: ARO puts the true one last
    assert found.scores["order"] == pytest.approx(2 / 3)  # a tie is right: there it stands first
    with pytest.raises(ValueError, match="composition needs captions in train"):
        Composition().measure(Plane(), Silent(at(-4, -4, -4), cases=cases))
    assert found.details["attribute_ties"] == 1 and found.details["order_cases"] == 3
    assert (
        arranged("order", cases[0]) == (["0", "0", "40"], 0) and arranged("relation", {"true": "t", "relation": "f"})[1]
    )
    assert verdict(torch.tensor([1.0, 2.0]), 1) == [1.0, 0.0] and verdict(torch.tensor([2.0, 2.0]), 1) == [0.0, 1.0]


class Silent(Told):
    def evaluation_loader(self, *arguments, **options):
        for batch in super().evaluation_loader(*arguments, **options):
            yield {**batch, "captions": [[] for _ in batch["captions"]]}


def test_a_model_without_eyes_reads_every_caption_once():
    data = Told(at(0, 10, 20), captions=[[1.0, 2.0], [3.0], [4.0]])
    assert sorted(_captions(data)) == [
        "1.0",
        "2.0",
        "3.0",
        "4.0",
    ]  # padding repeats a sample, its captions do not count


def test_a_model_without_eyes_knows_the_order_of_words():
    blind = Bigrams(["a red cat", "a blue dog", "a red dog"], 0.1)
    assert blind("a blue cat") > blind("cat blue a")
    pair = math.log((2 + 0.1) / (3 + 0.1 * 6))  # "red" after "a" twice of three; <s> is no word, </s> is
    assert blind("a red") == pytest.approx(
        (math.log((3 + 0.1) / (3 + 0.6)) + pair + math.log(0.1 / (2 + 0.6))) / 3, abs=0.2
    )


def test_files_of_the_aro_benchmark(tmp_path):
    class Colour(Plane):
        def embed_image(self, images):
            return Encoding(at(*images[:, 0].double().flatten(1).mean(1).tolist()))  # red says the angle

    def write(name, angle, crop=None):
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[..., 0] = angle
        if crop:
            picture[:4, :4, 0] = crop
        Image.fromarray(picture).save(tmp_path / name)
        return name

    relation = [
        {"image_path": write("a.png", 10, 80), "true_caption": "80", "false_caption": "10", "relation_name": "on",
         "bbox_x": 0, "bbox_y": 0, "bbox_w": 4, "bbox_h": 4},
        {"image_path": write("b.png", 10), "true_caption": "80", "false_caption": "10", "relation_name": "on"},
        {"image_path": write("c.png", 10), "true_caption": "10", "false_caption": "80", "relation_name": "by"},
    ]  # fmt: skip
    path = tmp_path / "relation.json"
    path.write_text(json.dumps(relation))
    data = Told(at(0, 0), captions=[[10.0], [80.0]])
    found = ARO(str(path), str(tmp_path)).measure(Colour(), data)
    assert found.scores["aro_macro"] == 0.75 and found.scores["aro"] == pytest.approx(2 / 3)
    assert {"aro_macro_text_only", "aro_text_only"} < found.scores.keys() and found.details["ties"] == 0
    assert ARO(str(path), str(tmp_path), ("on",)).measure(Colour(), data).scores["aro_macro"] == 1.0
    order = tmp_path / "order.json"
    order.write_text(json.dumps([{"image_path": "b.png", "captions": ["10", "80", "90"]}]))
    scores = ARO(str(order), str(tmp_path)).measure(Colour(), data).scores
    assert scores["aro_macro"] == scores["aro"] == 1.0
    order.write_text(json.dumps([{"image_path": "gone.png", "captions": ["10", "80"]}]))
    with pytest.raises(ValueError, match=r"order.json: entry 0 cannot be used"):
        ARO(str(order), str(tmp_path)).measure(Colour(), data)


# Learning on texts, running on images.


def test_noise_of_the_worked_example():
    g = torch.Generator().manual_seed(0)
    x = unit(torch.randn(4000, 768, generator=g))
    for sigma, cosine in ((0.04, 0.6698), (0.08, 0.4112), (0.12, 0.2880)):
        moved = ModalityGapNoise(sigma)(x, g)
        torch.testing.assert_close(moved.norm(dim=1), torch.ones(4000))
        assert (moved * x).sum(1).mean().item() == pytest.approx(cosine, abs=2e-3)
    torch.testing.assert_close(ModalityGapNoise(0.0)(3 * x, g), x)
    with pytest.raises(ValueError, match="sigma must be >= 0"):
        ModalityGapNoise(-1)


def test_noise_with_the_differences_own_shape():
    g = torch.Generator().manual_seed(0)
    x = unit(torch.randn(50, 3, generator=g))
    along = torch.zeros(3, 3)
    along[0, 0] = 0.04  # singular: only along the first axis
    moved = ModalityGapNoise(0.0, along)(x, g)
    ratio = moved[:, 1:] / x[:, 1:]
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1], atol=1e-4, rtol=1e-4)
    assert (moved - x).abs().max() > 0.1


def test_the_shift_brings_the_means_together():
    g = torch.Generator().manual_seed(0)
    texts = torch.randn(200, 8, generator=g)
    images = unit(texts) + torch.tensor([0.8, *[0.0] * 7])
    moved = MeanShift(images, texts)(texts)
    torch.testing.assert_close(moved.mean(0), unit(images).mean(0))


def test_transfer_gains_from_the_shift():
    """Two classes told apart along the axis of the gap: texts alone mislead, the shift helps."""
    g = torch.Generator().manual_seed(0)
    label = [i % 2 for i in range(40)]
    said = [90.0 + (10 if y else -10) + 2 * torch.randn((), generator=g).item() for y in label]
    data = Told(unit(at(*said) + torch.tensor([0.5, 0.0])), [[d] for d in said], label)
    plain = TextToImage("none").measure(Plane(), data)
    moved = TextToImage("shift").measure(Plane(), data)
    assert moved.scores["text_to_image"] > plain.scores["text_to_image"] + 0.2
    assert plain.scores["text_to_text"] == plain.scores["image_to_image"] == 1.0
    assert plain.details["modality_gap"] > 0.3 and plain.details["train"] == 40
    with pytest.raises(ValueError, match="adapter must be noise, shift, both or none"):
        TextToImage("other").measure(Plane(), data)


def test_copies_of_a_text_are_held_out_together():
    about = {"label": torch.tensor([0, 1, 1]), "index": torch.tensor([4, 9, 2]), "group": torch.tensor([-1, 7, 7])}
    features = _features(torch.randn(12, 3), about)
    for seed in range(5):
        fit, held = split(features, 0.4, seed)
        assert not set(fit.index.tolist()) & set(held.index.tolist())
        assert not set(fit.group.tolist()) & set(held.group.tolist()) - {-1}


# Cells.


def test_neighbours():
    z = at(0, 1, 3, 90, 95)
    assert neighbour_cells(z, 2)[:3].tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0]]
    twins = neighbour_cells(z, 1, torch.tensor([7, 7, -1, -1, -1]))
    assert twins.tolist() == [[0, 2], [1, 2], [2, 1], [3, 4], [4, 3]]
    alone = neighbour_cells(at(0, 1, 2), 2, torch.tensor([4, 4, 4]))
    assert alone.tolist() == [[0, -1, -1], [1, -1, -1], [2, -1, -1]]
    with pytest.raises(ValueError, match=r"k must be in \[1, 4\]"):
        neighbour_cells(z, 5)


def owners(q, t, k, m):
    """The five steps, word by word."""
    n, free, cells, left = len(q), set(range(len(q))), [], []
    for i in range(n):
        if i not in free:
            continue
        pool = (q[i] @ t.T).argsort(descending=True, stable=True).tolist()[: 2 * k * m + 1]
        own = [j for j in pool if j != i and j in free][: k * m]
        if len(own) < k:
            left.append(i)
            free -= {i}
            continue
        chosen = sorted(own, key=lambda j: float(q[i] @ q[j]))[:k]
        cells.append([i, *chosen])
        free -= {i, *chosen}
    return cells + [left[at : at + k + 1] for at in range(0, len(left), k + 1)]


@pytest.mark.parametrize(("k", "m"), [(2, 2), (3, 1), (1, 3)])
def test_owners(k, m):
    g = torch.Generator().manual_seed(0)
    q = unit(torch.randn(23, 6, generator=g, dtype=torch.float64))
    t = unit(q + 0.5 * torch.randn(23, 6, generator=g, dtype=torch.float64))
    found = owner_cells(q, t, k, m)
    assert [[i for i in row if i >= 0] for row in found.tolist()] == owners(q, t, k, m)
    flat = sorted(i for i in found.flatten().tolist() if i >= 0)
    assert flat == list(range(23))
    assert np.array_equal(found, owner_cells(q, t, k, m))


def test_an_owner_that_asks_the_same_is_chosen_last():
    """Candidates in pool order whose owners are 0.95, 0.6, 0.3 and 0.1 like the query: the last two are taken."""
    cosines = torch.tensor([1.0, 0.95, 0.6, 0.3, 0.1], dtype=torch.float64)
    q = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
    t = at(0, 1, 2, 3, 4)
    assert owner_cells(q, t, 2, 2)[0].tolist() == [0, 4, 3]


def test_texts_are_embedded_in_chunks_of_any_size(monkeypatch):
    data = SimpleNamespace(tokens=lambda texts: torch.tensor([[float(t)] for t in texts]))
    whole = embed_texts(Plane(), data, [str(d) for d in range(20)]).pooled
    monkeypatch.setattr("manyviews.evaluation.joint.CHUNK", 3)
    assert torch.equal(embed_texts(Plane(), data, [str(d) for d in range(20)]).pooled, whole)
