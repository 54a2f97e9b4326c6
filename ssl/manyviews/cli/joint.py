"""Commands in the joint space of images and texts: zeroshot, composition, transfer, mine, search."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from manyviews import foreign
from manyviews.backbones import views_of
from manyviews.cli.evaluate import Trained, bring_up, instantiate, pixels_of, show
from manyviews.distributed import LOCAL
from manyviews.evaluation import ARO, Composition, JointProtocol, TextToImage, ZeroShot
from manyviews.evaluation.features import prepared
from manyviews.evaluation.protocol import digest
from manyviews.methods import ImageText
from manyviews.mining import neighbour_cells, owner_cells
from manyviews.monitoring import pictures
from manyviews.runs.files import printable, whole


def image_text(arguments: argparse.Namespace) -> tuple[Trained, ImageText]:
    """The checkpoint of a command line, or an open_clip model from disk, as an image-text method.

    Raises:
        ValueError: if it knows no texts.
    """
    if getattr(arguments, "model", None) and not arguments.pretrained:
        raise ValueError("--model says what a file of --pretrained is: leave it out")
    trained = pretrained(arguments) if getattr(arguments, "pretrained", None) else bring_up(arguments)
    if not isinstance(trained.method, ImageText):
        raise ValueError(f"{trained.checkpoint}: {type(trained.method).__name__} knows no texts")
    trained.method.eval()
    return trained, trained.method


def pretrained(arguments: argparse.Namespace) -> Trained:
    """An open_clip model (a folder, or a weights file with --model NAME) on shards."""
    path = Path(arguments.pretrained)
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; --pretrained takes an open_clip folder, or a file with --model")
    if path.is_dir() and arguments.model:
        raise ValueError(f"{path} is a folder, which says itself what it is of: leave --model out")
    if path.is_file() and not arguments.model:
        raise ValueError(f"{path} is a file of weights: give --model, the open_clip model it is of")
    if not arguments.data:
        raise ValueError("--pretrained needs --data, a folder of shards")
    from manyviews.backbones.openclip import model_config, preprocessing

    name = arguments.model if path.is_file() else f"local-dir:{path}"
    tower: dict[str, Any] = {"name": name, **({"checkpoint": str(path)} if path.is_file() else {})}
    config = model_config(name)
    preprocess = preprocessing(name)
    side = preprocess["size"]
    one = {"class_path": "viewshards.views.Augmentation", "init_args": {"size": side}}
    view = {
        "size": side,
        "interpolation": preprocess["interpolation"],
        "mode": preprocess["resize_mode"],
        "fill": preprocess["fill_color"],
    }
    recipe = {
        "model": {
            "class_path": "manyviews.methods.CLIP",
            "init_args": {
                "dim": config["embed_dim"],
                "backbone": {"class_path": "manyviews.backbones.OpenClipImage", "init_args": tower},
                "text_backbone": {"class_path": "manyviews.backbones.OpenClipText", "init_args": tower},
            },
        },
        "data": {
            "class_path": "viewshards.ShardDataModule",
            "init_args": {
                "root": arguments.data,
                "global_batch_size": 1,
                "views": {"class_path": "viewshards.views.MultiView", "init_args": {"augmentations": [one]}},
                "eval_view": {"class_path": "viewshards.views.Published", "init_args": view},
                "text": {
                    "class_path": "viewshards.Captions",
                    "init_args": {"tokenizer": name, "context": config["text_cfg"].get("context_length", 77)},
                },
                "mean": preprocess["mean"],
                "std": preprocess["std"],
                **{
                    key: value
                    for key in ("label", "workers", "val_split")
                    if (value := getattr(arguments, key, None)) is not None
                },
            },
        },
    }
    method, data = instantiate(recipe)
    run = Path("runs") / f"pretrained-{path.stem}-{digest([str(path.resolve()), name])}"
    device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return Trained(method.to(device), data, path, 0, run, recipe)


def zeroshot(arguments: argparse.Namespace) -> None:
    """Zero-shot classification of the val split."""
    _measure(arguments, ZeroShot(arguments.bank))


def composition(arguments: argparse.Namespace) -> None:
    """True against false captions: of a split's own cases, or of ARO's files."""
    if not arguments.aro and (arguments.images or arguments.exclude):
        raise ValueError("--images and --exclude are of ARO's files: give --aro")
    if not arguments.aro:
        return _measure(arguments, Composition(arguments.split or "val"))
    if arguments.split is not None:
        raise ValueError("--split says whose own cases are asked, and --aro brings others: give one of the two")
    excluded = foreign.read_json(Path(arguments.exclude), list[str]) if arguments.exclude else []
    return _measure(arguments, ARO(arguments.aro, arguments.images or ".", tuple(excluded)))


def transfer(arguments: argparse.Namespace) -> None:
    """A classifier trained on captions, asked about images."""
    if arguments.sigma is not None and arguments.adapter not in ("noise", "both"):
        raise ValueError(f"--sigma is of the noise, and --adapter {arguments.adapter} adds none")
    sigma = {} if arguments.sigma is None else {"sigma": arguments.sigma}
    _measure(arguments, TextToImage(arguments.adapter, **sigma))


@torch.no_grad()
def mine(arguments: argparse.Namespace) -> None:
    """Cells of training samples that shall meet in a batch."""
    if arguments.m is not None and arguments.kind != "owners":
        raise ValueError("--m is of --kind owners")
    if arguments.m is not None and arguments.m < 1:
        raise ValueError(f"--m {arguments.m}: expected 1 or more candidates")
    if not arguments.out.endswith(".npz"):
        raise ValueError(f"{arguments.out}: expected a name that ends in .npz")
    trained, method = image_text(arguments)
    images, texts, index, group = [], [], [], []
    for batch in prepared(method, trained.data, trained.data.train_set, LOCAL):
        real = batch["weight"] > 0
        images.append(method.embed_image(views_of(batch)[0][real]).pooled.float().cpu())
        texts.append(method.embed_text(batch["text"][0][real]).pooled.float().cpu())
        index.append(batch["index"][real].cpu())
        group.append(batch["group"][real].cpu())
    number, duplicate = torch.cat(index), torch.cat(group)
    if arguments.kind == "neighbours":
        cells = neighbour_cells(torch.cat(images), arguments.k, duplicate)
    else:
        cells = owner_cells(torch.cat(texts), torch.cat(images), arguments.k, arguments.m or 3)
    cells = np.where(cells >= 0, number.numpy()[cells], -1)
    trained.data.keep_numbers(arguments.out, cells)
    print(f"{arguments.out}: {len(cells)} cells of {cells.shape[1]} samples; set data.cells to it")


def _measure(arguments: argparse.Namespace, protocol: JointProtocol) -> None:
    trained, _ = image_text(arguments)
    show(trained, protocol, trained.result(protocol), arguments.json)


@torch.no_grad()
def search(arguments: argparse.Namespace) -> None:
    """The nearest images of a split to a text or an image, as a contact sheet."""
    if bool(arguments.text) == bool(arguments.image):
        raise ValueError("give --text WORDS or --image FILE")
    trained, method = image_text(arguments)
    if arguments.text:
        query = method.embed_text(trained.data.tokens([arguments.text]).to(method.device))
    else:
        view = trained.data.of_picture(trained.data.picture(arguments.image))
        query = method.embed_image(view.to(method.device))
    asked = query.pooled.float().cpu().numpy()
    index, numbers = _index(trained, method, arguments.split, asked.shape[1])
    scores, found = index.search(asked, min(arguments.k, index.ntotal))
    samples, views = numbers[found[0]].T
    pixels: dict[tuple[int, int], Any] = {}
    for view in np.unique(views).tolist():
        wanted = pixels_of(trained, arguments.split, set(samples[views == view].tolist()), view)
        pixels |= {(sample, view): image for sample, image in wanted.items()}
    cells = [pixels[sample, view] for sample, view in zip(samples.tolist(), views.tolist(), strict=True)]
    columns = max(1, min(8, len(cells)))
    sheet = pictures.grid([cells[i : i + columns] for i in range(0, len(cells), columns)])
    factor = max(1, 96 // cells[0].shape[0])
    with whole(Path(arguments.out)) as part:
        Image.fromarray(np.repeat(np.repeat(sheet, factor, 0), factor, 1)).save(part)
    keys = _keys(trained, arguments.split)
    for score, sample in zip(scores[0].tolist(), samples.tolist(), strict=True):
        print(f"{score:.4f}  {printable(keys[sample])}")
    print(f"contact sheet: {arguments.out}")


def _index(trained: Trained, method: ImageText, split: str, width: int) -> tuple[Any, Any]:
    """An exact faiss index of the images of a split, and (sample, natural view) of its entries.

    The embeddings are kept in the run, as plain arrays: of these weights, these shards and this way of looking at them.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ValueError("search needs faiss: pip install 'manyviews[search]'") from error
    if type(method).similarity is not ImageText.similarity:
        raise ValueError(f"{type(method).__name__} scores tokens against tokens; an index of single vectors is not it")
    weights = hashlib.sha256()
    for tensor in method.state_dict().values():
        weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    seen = {name: trained.config["data"]["init_args"].get(name) for name in SEEN}
    what = [trained.data.shards_of(split).fingerprint, seen, weights.hexdigest()]
    name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = trained.run / "search" / f"{split}-{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            embedded, numbers = kept["embedded"].astype(np.float32), kept["numbers"].astype(np.int64)
        samples = len(trained.data.shards_of(split))
        is_right = embedded.shape == (len(embedded), width) and numbers.shape == (len(embedded), 2)
        if not is_right or not ((numbers >= 0) & (numbers < (samples, 2**31))).all():
            raise ValueError("its parts do not fit each other")
    except FileNotFoundError:
        embedded, numbers = _embedded(trained, method, split)
        with whole(path) as part:
            np.savez(part, embedded=embedded, numbers=numbers)
        print(f"index of {len(embedded)} images: {path}")
    except Exception as error:  # damaged archives fail in their own ways
        print(f"{path}: not readable ({error}); made again")
        path.unlink()
        return _index(trained, method, split, width)
    index = faiss.IndexFlatIP(embedded.shape[1])
    index.add(embedded)
    return index, numbers


SEEN = ("views", "eval_view", "natural_views", "missing", "mean", "std", "limits")
"""Options of the data that decide what an encoder sees of a sample."""


def _embedded(trained: Trained, method: ImageText, split: str) -> tuple[Any, Any]:
    rows, numbers = [], []
    for batch in prepared(method, trained.data, split, LOCAL):
        real = batch["weight"] > 0
        for view, images in enumerate(views_of(batch)):
            rows.append(method.embed_image(images[real]).pooled.float().cpu())
            numbers += [(sample, view) for sample in batch["index"][real].tolist()]
    return torch.cat(rows).numpy(), np.array(numbers)


def _keys(trained: Trained, split: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for batch in trained.data.evaluation_loader(split, world=1, rank=0):
        found |= dict(zip(batch["index"].tolist(), batch["key"], strict=True))
    return found
