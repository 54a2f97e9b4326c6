"""Clips: the frames asked for, tracks in every form and through every geometry, the extractor, resumable tracking."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import QUIET, packable
from tests.viewshards.test_pack import packed
from viewshards import Captions, ShardDataModule
from viewshards.cli import main
from viewshards.decode import decode
from viewshards.encoding import Encoding
from viewshards.order import generator
from viewshards.pack import pack
from viewshards.shards import ShardSet
from viewshards.sources import Options, open_source
from viewshards.sources.moving import Moving
from viewshards.tracks import ColourTracks
from viewshards.verify import verify
from viewshards.video import Clip, FrameArray, Tracks, Video, from_rle, rle_mask, to_global, to_local
from viewshards.views import Augmentation, VideoViews
from viewshards.views.video import packed as packed_ids

STILL = Augmentation(32, (1.0, 1.0), (1.0, 1.0), flip=0.0)


def numbered(count=30, side=32):
    """Frames that say their number by their grey."""
    return np.stack([np.full((side, side, 3), 8 * k, np.uint8) for k in range(count)])


def movie(path, frames, fps=24, codec="libx264", keyframes=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.gop_size = keyframes
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    out = tmp_path_factory.mktemp("moving")
    pack(Moving(40, 12), out, Encoding(), shard_samples=15, workers=2, console=QUIET)
    return out


def module(root, views, **options):
    return ShardDataModule(str(root), 8, views, workers=0, **options)


# Frames.


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_only_the_frames_asked_for(tmp_path, name, codec):
    video = Video(movie(tmp_path / name, numbered(), codec=codec).read_bytes())
    assert video.length == 30 and video.fps == pytest.approx(24)
    for wanted in ([0], [29], [17, 3, 11], [5, 5, 6], range(30)):
        found = video.read(list(wanted))
        assert [round(f.mean() / 8) for f in found] == list(wanted)
    with pytest.raises(ValueError, match="frames 0 to 29 can be read, 30 was asked for"):
        video.read([30])


def test_what_is_no_video_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"\.mp4 does not decode"):
        decode("mp4", b"nothing of a video")
    whole = movie(tmp_path / "a.mp4", numbered()).read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/a.mp4").write_bytes(whole[: len(whole) // 2])
    assert main(["pack", str(tmp_path / "cut"), str(tmp_path / "out")]) == 2
    assert "a: " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"array \(T, H, W, 3\) of bytes, got \(3, 3\)"):
        FrameArray(np.zeros((3, 3), np.uint8))


def test_folders_tables_and_animations(tmp_path):
    root = tmp_path / "clips"
    for split in ("train", "val"):
        (root / split / "run").mkdir(parents=True)
        movie(root / split / "run/a.mp4", numbered())
    movie(root / "train/run/b.mkv", numbered(12))
    Tracks(np.ones((2, 4, 4), np.int64), np.array([0, 9])).to_bytes()
    (root / "train/run/a.traj.npz").write_bytes(Tracks(np.ones((2, 4, 4), np.int64), np.array([0, 9])).to_bytes())
    manifest = packed(root, tmp_path / "out")
    assert {s: sum(x.samples for x in shards) for s, shards in manifest.splits.items()} == {"train": 2, "val": 1}
    shards = ShardSet(str(tmp_path / "out"), "train")
    files = {shards.key(i): shards.read(i) for i in range(2)}
    assert set(files["run/a"]) == {"mp4", "traj.npz", "cls", "json"} and set(files["run/b"]) == {"mkv", "cls", "json"}
    assert not list(verify(tmp_path / "out"))
    for k, frame in enumerate(numbered(4)):
        (root / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(root / f"frames/{k:03d}.png")
    pictures = [Image.fromarray(frame) for frame in numbered(5)]
    pictures[0].save(root / "w.webp", save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    rows = [{"file_name": "frames", "caption": "a folder"}, {"file_name": "w.webp", "caption": "an animation"}]
    (root / "t.jsonl").write_text("\n".join(json.dumps({**row, "split": "train"}) for row in rows))
    packed(root / "t.jsonl", tmp_path / "table")
    with pytest.raises(
        ValueError, match=r"files of several kinds, 5 of kind image, 3 of kind clip: say which by --kind"
    ):
        pack(open_source(str(root), Options(table="none")), tmp_path / "mixed", console=QUIET)
    shards = ShardSet(str(tmp_path / "table"), "train")
    found = {shards.read(i)["txt"].decode(): decode("npy", shards.read(i)["frames.npy"]) for i in range(2)}
    np.testing.assert_array_equal(found["a folder"], numbered(4))
    np.testing.assert_array_equal(found["an animation"], numbered(5))
    assert packable(root / "train/run/a.mp4")[0] == "mp4"


# Tracks.


def test_the_two_forms_are_one(tmp_path):
    ids = np.random.default_rng(0).integers(0, 9, (5, 6, 7))
    ids[2][ids[2] == 4] = 0  # number 4 is away for a frame
    masks, graph = to_local(ids)
    assert graph.shape == (8, 5) and graph[3, 2] == 0
    for t in range(5):
        there = graph[:, t][graph[:, t] > 0]
        assert sorted(there) == list(range(1, len(there) + 1)) == sorted(set(masks[t].ravel()) - {0})
    np.testing.assert_array_equal(to_global(masks, graph), ids)
    np.savez(tmp_path / "traj.npz", masks=masks.astype(np.uint8), graph=graph)
    read = Tracks.of(decode("traj.npz", (tmp_path / "traj.npz").read_bytes()))
    np.testing.assert_array_equal(read.ids, ids)
    again = Tracks.of(decode("npz", read.to_bytes()))
    np.testing.assert_array_equal(again.ids, ids)
    np.testing.assert_array_equal(again.frame_index, np.arange(5))
    graph[0, 0] = graph[1, 0]
    with pytest.raises(ValueError, match="graph column 0 does not fit its masks"):
        to_global(masks, graph)
    with pytest.raises(ValueError, match="tracks need ids, or masks and graph"):
        Tracks.of({"other": ids})


def coco_text(counts):
    """COCO's compression, written down from its definition."""
    out = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            out += chr((c | 0x20 if more else c) + 48)
    return out


def test_run_lengths():
    mask = np.random.default_rng(1).random((9, 13)) < 0.3
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    counts = counts if flat[0] == 0 else [0, *counts]
    for form in (counts, coco_text(counts), coco_text(counts).encode()):
        np.testing.assert_array_equal(rle_mask({"size": [9, 13], "counts": form}), mask)
    with pytest.raises(ValueError, match="run lengths of 5 pixels for 2 x 3"):
        rle_mask({"size": [2, 3], "counts": [2, 3]})
    large, small = {"size": [2, 3], "counts": [0, 6]}, {"size": [2, 3], "counts": [2, 2, 2]}
    ids = from_rle([{0: large, 1: large}, {0: small}])
    np.testing.assert_array_equal(ids, [[[1, 2, 1], [1, 2, 1]], [[1] * 3] * 2])


def test_too_small_and_too_many():
    ids = np.zeros((1, 4, 4), np.int64)
    ids[0, 0, 0], ids[0, 1, :3], ids[0, 2] = 9, 4, 7
    assert packed_ids(ids).max() == 3
    kept = packed_ids(ids, smallest=2)
    assert set(kept.ravel()) == {0, 1, 2} and kept[0, 0, 0] == 0
    assert (kept[0, 1, :3] == 1).all() and (kept[0, 2] == 2).all()
    one = packed_ids(ids, most=1)
    assert (one > 0).sum() == 4 and (one[0, 2] == 1).all()


# Views.


def test_which_frames_a_view_shows():
    clip, rng = Clip(FrameArray(numbered(30))), generator(0)
    for _ in range(20):
        (view, ids), *_ = VideoViews(6, [STILL])([clip], rng)[0]
        numbers = (view.mean((1, 2, 3)) / 8).round().astype(int)
        assert ids is None and all(5 * t <= n < 5 * (t + 1) for t, n in enumerate(numbers))
        short = (VideoViews(6, [STILL], span=0.2)([clip], rng)[0][0][0].mean((1, 2, 3)) / 8).round()
        assert short[-1] - short[0] <= 6 and (np.diff(short) >= 0).all()
    plain = VideoViews(6, [STILL]).plain()([clip], rng)[0][0][0]
    assert (plain.mean((1, 2, 3)) / 8).round().tolist() == [2, 7, 12, 17, 22, 27]
    sparse = Clip(FrameArray(numbered(30)), Tracks(np.ones((3, 4, 4), np.int64), np.array([4, 9, 20])))
    plain = VideoViews(3, [STILL], tracks=True).plain()([sparse], rng)[0][0]
    assert (plain[0].mean((1, 2, 3)) / 8).round().tolist() == [4, 9, 20] and plain[1].shape == (3, 8, 8)
    with pytest.raises(ValueError, match="no traj.npz; `viewshards tracks` makes one"):
        VideoViews(3, [STILL], tracks=True)([clip], rng)


def test_trajectories_move_with_their_frames():
    """A thing of its own colour: after crop and flip its pixels and its ids still are in one place."""
    frames, ids = np.zeros((4, 48, 64, 3), np.uint8), np.zeros((4, 48, 64), np.int64)
    for t in range(4):
        frames[t, 10 + 4 * t : 30 + 4 * t, 8 + 6 * t : 32 + 6 * t] = 255
        ids[t, 10 + 4 * t : 30 + 4 * t, 8 + 6 * t : 32 + 6 * t] = 5
    clip, rng = Clip(FrameArray(frames), Tracks(ids, np.arange(4))), generator(1)
    views = VideoViews(4, [Augmentation(32, (0.4, 1.0), flip=0.5)], tracks=True, track_size=32)
    seen = 0
    for _ in range(20):
        (view, tracks), *_ = views([clip], rng)[0]
        white = view[..., 0] > 127
        assert set(np.unique(tracks)) <= {0, 1}
        assert ((tracks == 1) != white).mean() < 0.08
        seen += white.any()
    assert seen > 15


def test_a_batch_of_clips(moving):
    views = VideoViews(4, [Augmentation(32, (0.5, 1.0), jitter=(0.4, 0.4, 0.4, 0.1)), STILL], tracks=True)
    data = module(moving, views, text=Captions(context=24))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert [v.shape for v in batch["video"]] == [(8, 4, 3, 32, 32)] * 2 and batch["video"][0].dtype == torch.float32
    assert [t.shape for t in batch["tracks"]] == [(8, 4, 8, 8)] * 2 and batch["tracks"][0].dtype == torch.int64
    assert batch["text"][0].shape == (8, 24) and batch["tracks"][1].amax().item() == 3
    assert data.as_pictures(batch["video"][0]).shape == (8, 3, 32, 128)
    last = list(data.evaluation_loader("val", batch_size=5))[-1]
    assert last["weight"].tolist() == [1, 1, 0, 0, 0] and (last["tracks"][0][2:] == 0).all()
    plain = module(moving, VideoViews(4, [STILL]))
    assert "tracks" not in next(iter(plain.train_dataloader()))


def test_views_depend_on_seed_epoch_and_sample_only(moving):
    def seen(workers):
        data = ShardDataModule(
            str(moving), 8, VideoViews(4, [Augmentation(16, (0.5, 1.0))], tracks=True), workers=workers
        )
        return {
            int(i): (v, t)
            for b in data.train_dataloader()
            for i, v, t in zip(b["index"], b["video"][0], b["tracks"][0], strict=True)
        }

    one, two = seen(0), seen(2)
    assert one.keys() == two.keys()
    assert all(torch.equal(a, b) for i in one for a, b in zip(one[i], two[i], strict=True))


# The extractor.


def valid(ids):
    masks, graph = to_local(ids)
    assert (graph >= 0).all() and graph.any(1).all()  # no empty row
    for t in range(len(ids)):
        there = graph[:, t][graph[:, t] > 0]
        assert len(set(there)) == len(there) and there.max(initial=0) <= masks[t].max()


def squares(frames, *things, side=32):
    """Coloured squares of 8 px on black; each thing: colour, start, step."""
    out = np.zeros((frames, side, side, 3), np.uint8)
    for colour, (y, x), (dy, dx) in things:
        for t in range(frames):
            out[t, y + dy * t : y + dy * t + 8, x + dx * t : x + dx * t + 8] = colour
    return out


def test_a_moving_square_is_one_trajectory():
    frames = squares(6, ((255, 0, 0), (4, 2), (0, 2)))
    ids = ColourTracks()(frames)
    valid(ids)
    inside = {int(ids[t, 8, 6 + 2 * t]) for t in range(6)}
    assert len(inside) == 1 and 0 not in inside
    again = ColourTracks()(np.concatenate([frames, frames[-1:]]))
    assert again.max() == ids.max() and np.array_equal(again, ColourTracks()(np.concatenate([frames, frames[-1:]])))


def test_a_still_clip_keeps_its_regions():
    frames = np.repeat(squares(1, ((255, 0, 0), (4, 2), (0, 0)), ((0, 0, 255), (18, 18), (0, 0))), 5, 0)
    ids = ColourTracks()(frames)
    valid(ids)
    assert all(np.array_equal(ids[t], ids[0]) for t in range(5)) and ids.max() == len(np.unique(ids[0][ids[0] > 0]))


def test_crossing_squares_keep_their_names():
    frames = squares(13, ((255, 0, 0), (4, 0), (0, 2)), ((0, 0, 255), (9, 24), (0, -2)))
    ids = ColourTracks()(frames)
    valid(ids)
    assert ids[0, 7, 4] == ids[12, 7, 28] != 0 and ids[0, 13, 28] == ids[12, 13, 4] != 0


def test_things_of_the_generated_clips_are_found():
    """The best overlap of a true trajectory over space and time; 0.65 is reached on such clips."""
    source, scores = Moving(20, 0), []
    for i in range(20):
        files = source.files(i)
        true = Tracks.of(decode("traj.npz", files["traj.npz"])).ids
        found = ColourTracks()(decode("npy", files["frames.npy"]))
        valid(found)
        for number in (1, 2):
            there = true == number
            candidates = np.unique(found[there])
            scores.append(max((there & (found == c)).sum() / (there | (found == c)).sum() for c in candidates if c))
    assert np.mean(scores) > 0.5 and np.mean(np.array(scores) > 0.5) > 0.6


def test_tracking_a_set(moving, tmp_path, capsys):
    command = ["tracks", str(moving), str(tmp_path / "out"), "--frames", "4", "--workers", "2"]
    assert main(command) == 0 and main(command) == 0
    assert "packed already" in " ".join(capsys.readouterr().err.split())
    shards = ShardSet(str(tmp_path / "out"), "train")
    tracks = Tracks.of(decode("traj.npz", shards.read(0)["traj.npz"]))
    assert tracks.ids.shape == (4, 32, 32) and tracks.frame_index.tolist() == [1, 3, 5, 7]
    assert len(shards) == 40 and not list(verify(tmp_path / "out"))
    other = [*command[:2], str(tmp_path / "grid"), "--extractor", "tests.viewshards.test_video:halves"]
    assert main(other) == 0
    found = Tracks.of(decode("traj.npz", ShardSet(str(tmp_path / "grid"), "val").read(0)["traj.npz"]))
    assert set(np.unique(found.ids)) == {1, 2}
    assert main(["inspect", str(tmp_path / "out"), "--sheet", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 4 * 96


def halves(frames):
    ids = np.ones(frames.shape[:3], np.int64)
    ids[:, :, frames.shape[2] // 2 :] = 2
    return ids
