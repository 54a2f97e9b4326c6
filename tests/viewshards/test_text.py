"""Captions: found, drawn, changed, tokenised; tables with several of them; generated shapes; cells."""

import csv
import json
from collections import Counter
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from tests.conftest import QUIET
from tests.viewshards.test_pack import packed, picture
from viewshards import Captions, ShardDataModule, TextAugmentation
from viewshards.cli import main
from viewshards.encoding import Encoding
from viewshards.order import CellBatches, generator
from viewshards.pack import pack
from viewshards.shards import Manifest, ShardSet
from viewshards.sources import open_source
from viewshards.sources.generated import Shapes
from viewshards.text import STRONG, WEAK
from viewshards.views import Augmentation, CentreCrop, MultiView, PointViews, SimCLR

PLAIN = MultiView([Augmentation(16, (0.9, 1.0), flip=0.0)])


def rows(path, table):
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    return path


@pytest.fixture
def flat(tmp_path):
    """One row a caption, as COCO's captions come; one picture with one caption only."""
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    table = [
        {"file_name": "a.png", "caption": "a cat", "language": "en", "hard_captions": '["a dog", "cat a"]', "split": "train"},
        {"file_name": "a.png", "caption": "un chat", "language": "fr", "hard_captions": "", "split": "train"},
        {"file_name": "a.png", "caption": "a cat", "language": "en", "hard_captions": "", "split": "train"},
        {"file_name": "b.png", "caption": "a bird", "language": "en", "hard_captions": "", "split": "train"},
        {"file_name": "c.png", "caption": "a fish", "language": "en", "hard_captions": "[]", "split": "val"},
    ]  # fmt: skip
    return rows(tmp_path / "captions.csv", table)


def test_rows_of_one_file_are_its_captions(flat, tmp_path):
    packed(flat, tmp_path / "out")
    shards = ShardSet(str(tmp_path / "out"), "train")
    found = {shards.key(i): shards.read(i) for i in range(len(shards))}
    assert set(found) == {"a", "b"}
    about = json.loads(found["a"]["json"])
    assert about["captions"] == ["a cat", "un chat"]
    assert about["hard_captions"] == [["a dog", "cat a"], []]
    assert about["languages"] == ["en", "fr"]
    assert found["a"]["txt"] == b"a cat" and set(found["a"]) == {"png", "txt", "json"}
    assert json.loads(found["b"]["json"])["captions"] == ["a bird"]


def test_lists_in_jsonl_and_bad_ones(tmp_path):
    picture(tmp_path / "a.png")
    line = {"image": "a.png", "captions": ["one", "two"], "hard_captions": ["three"], "split": "train"}
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    packed(tmp_path / "t.jsonl", tmp_path / "out")
    about = json.loads(ShardSet(str(tmp_path / "out"), "train").read(0)["json"])
    assert about == {"file_name": "a.png", "captions": ["one", "two"], "hard_captions": [["three"], ["three"]]}
    (tmp_path / "t.jsonl").write_text(json.dumps({**line, "hard_captions": "not json"}))
    with pytest.raises(ValueError, match=r"a.*expected a list of texts.*'not json'|expected a list of texts"):
        packed(tmp_path / "t.jsonl", tmp_path / "other")


def test_samples_without_a_caption_are_told_of(tmp_path, capsys):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    lines = [
        {"image": f"{name}.png", "caption": said, "split": "train"}
        for name, said in zip("abc", ("one", "", "two"), strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["pack", str(tmp_path / "t.jsonl"), str(tmp_path / "out")]) == 0
    assert "note: 1 of 3 samples have no caption" in capsys.readouterr().err
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({**line, "caption": "x"}) for line in lines))
    assert main(["pack", str(tmp_path / "t.jsonl"), str(tmp_path / "all")]) == 0
    assert "have no caption" not in capsys.readouterr().err


FIELDS = {
    "txt": "a cat",
    "json": {
        "captions": ["a cat", "un chat", "a small cat"],
        "hard_captions": [["a dog"], [], ["small a cat", "a cat small"]],
        "languages": ["en", "fr", "en"],
        "keywords": ["pet", "animal"],
    },
}


def test_where_captions_come_from():
    assert list(Captions().of(FIELDS)) == ["a cat", "un chat", "a small cat"]
    assert list(Captions(language="fr", fields=["captions"]).of(FIELDS)) == ["un chat"]
    assert list(Captions(language="fr").of(FIELDS)) == ["un chat"]  # `.txt` does not say what it is in
    assert list(Captions(fields=["txt", "keywords"]).of(FIELDS)) == ["a cat", "pet", "animal"]
    assert Captions().of(FIELDS)["a small cat"] == ["small a cat", "a cat small"]
    with pytest.raises(ValueError, match=r"no caption in language 'de' in captions"):
        Captions(language="de", fields=["captions"]).of(FIELDS)
    with pytest.raises(ValueError, match="no caption in captions, txt"):
        Captions().of({})


def said(ids):
    import open_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    words = [int(i) for i in ids if i not in (0, 49406, 49407)]
    return tokenizer.decode(words).strip()


def test_a_draw():
    captions = Captions(hard=2, context=12)
    seen = set()
    for seed in range(40):
        found = captions.draw(FIELDS, np.random.default_rng(seed))
        caption = said(found["text"][0])
        seen.add(caption)
        assert found["text"][0].shape == (12,) and found["hard_text"].shape == (2, 12)
        hard = [said(ids) for ids, there in zip(found["hard_text"], found["hard_present"], strict=True) if there]
        assert sorted(hard) == sorted(captions.of(FIELDS)[caption])
    assert seen == {"a cat", "un chat", "a small cat"}


def test_views_of_one_caption_or_of_several():
    same = Captions(views=3, context=12).draw(FIELDS, np.random.default_rng(0))["text"]
    assert len({said(ids) for ids in same}) == 1
    other = Captions(views=3, distinct=True, context=12).draw(FIELDS, np.random.default_rng(0))["text"]
    assert {said(ids) for ids in other} == {"a cat", "un chat", "a small cat"}


def test_all_captions_for_evaluation():
    found = Captions(every=5, context=12).all({**FIELDS, "json": {**FIELDS["json"], "cases": {"true": "x"}}})
    assert found["text_present"].tolist() == [True] * 3 + [False] * 2
    assert [said(ids) for ids in found["text"][:3]] == ["a cat", "un chat", "a small cat"]
    assert found["cases"] == {"true": "x"}


def test_weak_and_strong_text():
    caption = "the big cat sleeps on a red sofa in the sun"
    rng = np.random.default_rng(0)
    weak = [WEAK(caption, rng) for _ in range(500)]
    assert set(weak) == {caption, "big cat sleeps red sofa sun"}
    assert 0.75 < sum(w != caption for w in weak) / 500 < 0.85
    strong = [STRONG(caption, rng).split() for _ in range(500)]
    lengths = {len(words) for words in strong}
    assert lengths <= {5, 6, 10, 11}
    assert any(sorted(words) == sorted(caption.split()) and words != caption.split() for words in strong)
    assert WEAK("in the", rng) == "in the"  # never empty
    one = TextAugmentation(0.0, delete=1.0)
    assert one("cat", rng) == "cat"


def test_synonyms_come_from_a_file(tmp_path):
    (tmp_path / "words.json").write_text('{"cat": ["feline"]}')
    change = TextAugmentation(0.0, synonym=1.0, synonyms=str(tmp_path / "words.json"))
    assert change("a cat", np.random.default_rng(0)) == "a feline"
    assert change("a dog", np.random.default_rng(0)) == "a dog"


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="shares"):
        TextAugmentation(stop_words=2)
    with pytest.raises(ValueError, match="at least one view"):
        Captions(augmentations=[])
    with pytest.raises(ValueError, match=r"no tokenizer 'nothing-like-it'"):
        Captions(tokenizer="nothing-like-it").tokens(["a"])


def test_the_tokens_are_open_clips():
    import open_clip

    theirs = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat", "2 dogs!"])
    assert torch.equal(torch.from_numpy(Captions().tokens(["a photo of a cat", "2 dogs!"])), theirs)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The first of each split of the generated set."""
    source = Shapes(32)
    keep = []
    for split, n in (("train", 160), ("val", 40), ("composition", 30)):
        keep += [i for i, (_, s) in enumerate(source.samples) if s == split][:n]
    source.samples, source.scenes = [source.samples[i] for i in keep], [source.scenes[i] for i in keep]
    out = tmp_path_factory.mktemp("shapes") / "shards"
    pack(source, out, Encoding(), console=QUIET, workers=1)
    return out


def module(root, **options):
    options = {"views": PLAIN, "global_batch_size": 32, "workers": 0, "text": Captions(context=24), **options}
    return ShardDataModule(str(root), **options)


def test_batches_with_texts(shapes):
    data = module(shapes, text=Captions(hard=1, context=24))
    batch = next(iter(data.train_dataloader()))
    assert [ids.shape for ids in batch["text"]] == [(32, 24)] and batch["text"][0].dtype == torch.int64
    assert batch["hard_text"].shape == (32, 1, 24) and batch["hard_present"].dtype == torch.bool
    assert batch["hard_present"].all()
    val = next(iter(data.evaluation_loader("val", batch_size=48)))
    assert len(val["text"]) == 5 and val["text_present"].shape == (48, 5)
    assert val["text_present"][:40].sum(1).tolist() == [2] * 40
    assert val["cases"][0]["true"] == val["caption"][0]
    assert torch.equal(data.tokens([val["caption"][0]])[0], val["text"][0][0])


def test_texts_change_neither_pictures_nor_order(shapes):
    plain, texts = (next(iter(module(shapes, text=text).train_dataloader())) for text in (None, Captions(context=24)))
    assert torch.equal(plain["image"][0], texts["image"][0]) and plain["key"] == texts["key"]
    assert "text" not in plain


def test_epochs_draw_other_captions(shapes):
    data, seen = module(shapes), []
    for number in range(4):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(number)
        seen.append({k: tuple(t.tolist()) for b in loader for k, t in zip(b["key"], b["text"][0], strict=True)})
    shared = set.intersection(*(set(epoch) for epoch in seen))
    assert {len({epoch[key] for epoch in seen}) for key in shared} == {1, 2}
    with pytest.raises(ValueError, match="no tokenizer: set data.text"):
        module(shapes, text=None).tokens(["a"])


# Generated shapes.


def test_shapes_say_what_they_show():
    source = Shapes()
    splits = {
        split: [scene for (_, s), scene in zip(source.samples, source.scenes, strict=True) if s == split]
        for split in ("train", "val", "seen", "composition")
    }
    assert {split: len(scenes) for split, scenes in splits.items()} == {
        "train": 4000,
        "val": 100,
        "seen": 100,
        "composition": 1000,
    }
    combination = lambda scene: tuple(thing[1:] for thing in scene[0][:2])  # noqa: E731
    shown = {combination(scene) for scene in splits["train"]}
    assert not shown & {combination(scene) for scene in splits["val"] + splits["composition"]}
    assert {combination(scene) for scene in splits["seen"]} <= shown | {combination(s) for s in splits["seen"]}
    firsts = [source._captions(*scene)[0] for scene in splits["val"]]
    assert len(set(firsts)) == 100
    for i in range(0, 5200, 137):
        about = json.loads(source.files(i)["json"])
        for caption, hard in zip(about["captions"], about["hard_captions"], strict=True):
            assert hard and caption not in hard and not set(hard) & set(about["captions"])
            assert all(sorted(text.split()) == sorted(caption.split()) for text in hard if "," not in caption)
        assert set(about["cases"]) >= {"true", "relation", "order"}
    assert source.files(3) == Shapes().files(3)


def test_shapes_are_where_the_caption_says():
    source = Shapes()
    from viewshards.decode import decode

    for i, (things, beside) in enumerate(source.scenes[:60]):
        if len(things) != 2 or things[0][1] == things[1][1]:
            continue
        image = decode("png", source.files(i)["png"]).astype(int)
        places = []
        for thing in things:
            near = np.abs(image - np.array(source.colours[thing[1]])).sum(2) < 60
            assert near.sum() > 4
            places.append(np.argwhere(near).mean(0))
        axis = 1 if beside else 0
        assert places[0][axis] < places[1][axis]


# Cells.


def batches(cells, take, world=1, rank=0, epoch=0, consumed=0):
    sampler = CellBatches(np.array(cells), take, [20, 20], 8, 4, 2, 3, world, rank)
    sampler.epoch, sampler.consumed = epoch, consumed
    return [[i for _, i in batch] for batch in sampler]


def test_cells_stay_together():
    cells = [[i, (i + 1) % 40, (i + 2) % 40, -1] for i in range(40)]
    whole = batches(cells, 2)
    assert len(whole) == 10 and all(len(batch) == 8 for batch in whole)
    pairs = [batch[i : i + 2] for batch in whole for i in range(0, 8, 2)]
    assert sorted(first for first, _ in pairs) == list(range(40))
    assert all((other - first) % 40 in (1, 2) for first, other in pairs)
    assert batches(cells, 2, epoch=1) != whole and batches(cells, 2) == whole
    assert batches(cells, 2, consumed=24) == whole[3:]
    ranks = [batches(cells, 2, 2, rank) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    drawn = {tuple(sorted(p)) for e in range(6) for b in batches(cells, 2, epoch=e) for p in [b[0:2], b[2:4]]}
    assert len(drawn) > 24  # other neighbours in other epochs


def test_short_cells_are_left_out_and_bad_ones_refused():
    assert len(batches([[0, 1], [2, -1], *([[4, 5]] * 7)], 2)) == 2
    with pytest.raises(ValueError, match="cells must be"):
        batches([[0, 1]], 3)
    with pytest.raises(ValueError, match="names sample 99, but the split has 40"):
        batches([[0, 99]] * 4, 2)
    with pytest.raises(ValueError, match="do not fill a batch"):
        batches([[0, 1]], 2)


def test_a_data_module_with_cells(shapes, tmp_path):
    np.save(tmp_path / "cells.npy", np.stack([np.arange(160), (np.arange(160) + 1) % 160], 1))
    data = module(shapes, cells=str(tmp_path / "cells.npy"))
    batch = next(iter(data.train_dataloader()))
    index = batch["index"].view(-1, 2)
    assert ((index[:, 1] - index[:, 0]) % 160 == 1).all()
    np.save(tmp_path / "other.npy", np.stack([np.arange(160), (np.arange(160) + 2) % 160], 1))
    with pytest.raises(ValueError, match="cells: checkpoint"):
        module(shapes, cells=str(tmp_path / "other.npy")).load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="clusters or cells"):
        module(shapes, cells="a.npy", clusters="b.npy")


def test_random_numbers_of_texts_are_their_own():
    assert generator(0, 0, 2, 5).random() != generator(0, 0, 3, 5).random()


def test_open_source_knows_shapes():
    assert open_source("builtin:shapes").name == "shapes"


@pytest.fixture
def patchy(tmp_path):
    """Six things, drawn by two hands and named; some lack one of these."""
    table = []
    for i in range(6):
        for hand in ("left", "right"):
            if (i, hand) not in ((1, "left"), (2, "right")):
                picture(tmp_path / f"{i}.{hand}.png")
                caption = "" if i == 3 else f"thing {i}"
                table.append(
                    {
                        "file_name": f"{i}.{hand}.png",
                        "id": str(i),
                        "view": hand,
                        "caption": caption,
                        "split": "train" if i < 4 else "val",
                    }
                )
    return rows(tmp_path / "captions.csv", table)


def test_samples_that_lack_views_or_captions(patchy, tmp_path):
    packed(patchy, tmp_path / "out")
    views = MultiView([Augmentation(16, (0.9, 1.0), flip=0.0)] * 2, natural="ordered")
    options = {"global_batch_size": 4, "natural_views": ["left", "right"], "text": Captions(context=8), "workers": 0}
    data = ShardDataModule(str(tmp_path / "out"), views=views, missing=True, **options)
    (batch,) = data.train_dataloader()
    by_key = dict(zip(batch["key"], batch["present"].tolist(), strict=True))
    assert by_key == {
        "0": [True, True, True],
        "1": [False, True, True],
        "2": [True, False, True],
        "3": [True, True, False],
    }
    assert (
        batch["replaced"] == [] and len(batch["image"]) == 2 and (batch["text"][0][batch["key"].index("3")] == 0).all()
    )
    assert all(view.shape == (4, 3, 16, 16) for view in batch["image"])
    (plain,) = data.evaluation_loader("train")
    complete = [key for key, weight in zip(plain["key"], plain["weight"], strict=True) if weight]
    assert complete == ["0"] and plain["replaced"] == []  # evaluation: only what has all
    (strict,) = ShardDataModule(str(tmp_path / "out"), views=views, max_broken=1, **options).train_dataloader()
    assert len(strict["replaced"]) >= 3
    across = MultiView([Augmentation(16, (0.9, 1.0), flip=0.0)] * 2)
    with pytest.raises(ValueError, match="natural: ordered"):
        ShardDataModule(str(tmp_path / "out"), views=across, missing=True, **options)


def test_missing_views_teach_nothing_and_other_objectives_refuse_them(patchy, tmp_path):
    from manyviews.objectives import CLIP, MVDHEL, MVInfoNCE

    present = torch.tensor([[True, True, True], [False, True, True], [True, False, True], [True, True, False]])
    for objective in (MVInfoNCE(0.1, same_view_negatives=False), MVInfoNCE(0.1), MVDHEL(0.5)):
        views = [torch.randn(4, 5, requires_grad=True) for _ in range(3)]
        objective(views, present=present).backward()
        for v, view in enumerate(views):
            assert (view.grad[~present[:, v]] == 0).all() and (view.grad[present[:, v]] != 0).any()
    with pytest.raises(ValueError, match="wants all views of every sample"):
        CLIP()([torch.randn(4, 5)] * 2, present=present[:, :2])


@pytest.fixture
def spoken(tmp_path):
    """Eight samples of train: six in English and German, one in English only, one without a language; two of val."""
    table = []
    for i in range(10):
        picture(tmp_path / f"{i}.png", seed=i)
        said = {"en": f"cat {i % 4}", "de": f"Katze {i}"} if i != 3 else {"en": "cat 3"}
        table.append({"file_name": f"{i}.png", "split": "train" if i < 8 else "val", "captions": said})
    table[5]["captions"] = ["gato"]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, table)))
    packed(tmp_path / "table.jsonl", tmp_path / "out", shard_samples=4)
    return tmp_path / "out"


def fed(root, **text):
    return ShardDataModule(str(root), 2, SimCLR(8), lanes=2, text=Captions(context=8, **text), workers=0)


def started(data):
    """Set up as `fit` does."""
    data.trainer = pl.Trainer(max_steps=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    data.setup("fit")


def test_samples_without_a_language_are_counted_before_training(spoken):
    counted = [shard["languages"] for shard in json.loads((spoken / "manifest.json").read_text())["splits"]["train"]]
    assert sum((Counter(each) for each in counted), Counter()) == {"de+en": 6, "en": 1}
    message = (
        r"2 of 8 samples have no caption in de \(data.text.language\); its captions are in de, en. name others for them, "
        r"the best first: --data.text.language '\[de, en\]', or leave them out: --data.text.leave_out true"
    )
    with pytest.raises(ValueError, match=message):
        started(fed(spoken, language="de"))
    with pytest.raises(ValueError, match="1 of 8 samples have no caption in de, en"):
        started(fed(spoken, language=["de", "en"]))
    with pytest.raises(
        ValueError, match="8 of 8 samples have no caption in fr.*best first: --data.text.language '.fr, de, en.'$"
    ):
        started(fed(spoken, language="fr"))
    with pytest.raises(ValueError, match="8 of 8 samples have no caption in fr"):
        fed(spoken, language="fr", leave_out=True).train_set  # noqa: B018


def test_val_without_a_language_is_told(spoken, caplog):
    manifest = Manifest.load(str(spoken))
    (shard,) = manifest.splits["val"]
    manifest.splits["val"] = [replace(shard, languages={"de+en": 1, "en": shard.samples - 1})]
    manifest.save(spoken)
    started(fed(spoken, language=["en", "de"], leave_out=True))
    assert "split 'val'" not in caplog.text
    started(fed(spoken, language="de", leave_out=True))
    assert "split 'val': 1 of 2 samples have no caption in de" in caplog.text
    manifest.splits["val"] = [replace(shard, languages={"en": shard.samples})]
    manifest.save(spoken)
    started(fed(spoken, language="de", leave_out=True))
    assert "split 'val': 2 of 2 samples have no caption in de" in caplog.text


def test_captions_that_contradict_themselves_are_refused():
    for options in (
        {"views": 3, "augmentations": [None, None]},
        {"distinct": True},
        {"views": 2, "distinct": True, "duplicates": True},
    ):
        with pytest.raises(ValueError, match="Captions"):
            Captions(**options)


def test_samples_without_a_language_are_left_out(spoken, caplog):
    data = fed(spoken, language="de", leave_out=True)
    started(data)
    assert "2 of 8 samples of train are left out: no caption in de" in caplog.text
    keys = {data.train_set.key(i) for i in range(len(data.train_set))}
    assert keys == {"0", "1", "2", "4", "6", "7"} and data.steps_per_epoch == 3
    batches = list(data.train_dataloader())
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(keys)
    assert all(not batch["replaced"] for batch in batches)
    (seen,) = data.evaluation_loader("train", batch_size=8)  # evaluation sees the whole split
    assert sorted(seen["key"]) == [str(i) for i in range(8)]
    unspoken = dict(zip(seen["key"], seen["text_unspoken"].tolist(), strict=True))
    assert [key for key, is_so in sorted(unspoken.items()) if is_so] == ["3", "5"]
    (kept,) = data.evaluation_loader(data.train_set, batch_size=6)
    assert sorted(kept["key"]) == sorted(keys) and kept["index"].tolist() == list(range(6))
    whole = fed(spoken)
    with pytest.raises(ValueError, match="train: .*other samples are left out"):
        whole.load_state_dict(data.state_dict() | {"lanes": whole.lanes})


def test_the_best_language_that_a_sample_has(spoken):
    captions = Captions(language=["de", "en"])
    found = [next(iter(captions.of({"json": about}))) for about in (
        {"captions": ["cat", "Katze"], "languages": ["en", "de"]}, {"captions": ["cat", " "], "languages": ["en", "de"]},
    )]  # fmt: skip
    assert found == ["Katze", "cat"]
    for text in ({"leave_out": True}, {"language": "de", "fields": ["txt"]}):
        with pytest.raises(ValueError, match="language"):
            Captions(**text)


def test_an_index_counts_languages_as_packing_does(spoken):
    before = Manifest.load(str(spoken))
    assert main(["index", str(spoken)]) == 0
    assert [s.languages for s in Manifest.load(str(spoken)).splits["train"]] == [
        s.languages for s in before.splits["train"]
    ]
    assert main(["index", str(spoken), "--fast"]) == 0
    assert len(fed(spoken, language="de", leave_out=True).train_set) == 6  # by reading


def test_equal_captions_are_told_and_may_be_duplicates(spoken, tmp_path, capsys):
    said = Manifest.load(str(spoken)).made["account"]["notes"]
    assert any("6 of 10 samples with captions share one with another of their split" in note for note in said)
    pairs = {}
    for batch in fed(spoken, language=["en"], leave_out=True, duplicates=True).train_dataloader():
        pairs |= dict(zip(batch["key"], batch["group"].tolist(), strict=True))
    assert all((pairs[a] == pairs[b]) == (int(a) % 4 == int(b) % 4) for a in pairs for b in pairs)
    assert min(pairs.values()) >= 0
    drawn = Captions(duplicates=True).draw({"txt": " a  cat"}, np.random.default_rng(0))["group"]
    assert drawn == Captions(duplicates=True).draw({"txt": "a cat"}, np.random.default_rng(0))["group"]


def test_options_that_would_not_be_used_are_told(spoken, caplog):
    ShardDataModule(str(spoken), 2, SimCLR(8), cache_dir="cache")
    assert "data.cache_dir is not used" in caplog.text
    with pytest.raises(ValueError, match="cell_samples"):
        ShardDataModule(str(spoken), 2, SimCLR(8), cell_samples=2)
    with pytest.raises(ValueError, match="eval_view"):
        ShardDataModule(str(spoken), 2, PointViews(8), eval_view=CentreCrop(8))


def test_captions_by_language(tmp_path):
    """As the raw emoji set has them: one name a language, or several."""
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "split": "train", "captions": {"en": "a cat", "de": ["eine Katze", "ein Tier"]}}
    (tmp_path / "table.jsonl").write_text(json.dumps(row) + "\n")
    packed(tmp_path / "table.jsonl", tmp_path / "out")
    about = json.loads(ShardSet(str(tmp_path / "out"), "train").read(0)["json"])
    assert about["captions"] == ["a cat", "eine Katze", "ein Tier"] and about["languages"] == ["en", "de", "de"]
    assert list(Captions(language="de").of({"json": about})) == ["eine Katze", "ein Tier"]
