"""What a tar must be, and what a damaged or hostile one gives."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import webdataset

from viewshards import index as indices
from viewshards.index import BrokenShard


def write(path, samples=5):
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for i in range(samples):
            tar.write({"__key__": f"{i:03d}", "txt": f"text {i}".encode() * 50, "cls": str(i).encode()})
    return path


def test_offsets_are_where_the_files_are(tmp_path):
    tar = write(tmp_path / "a.tar")
    index = indices.scan(tar)
    assert [index.key(i) for i in range(len(index))] == ["000", "001", "002", "003", "004"]
    data = tar.read_bytes()
    for i in range(5):
        offset, size = index.files(i)["txt"]
        assert data[offset : offset + size] == f"text {i}".encode() * 50
    indices.save(index, indices.path_of(str(tar)))
    again = indices.load(tmp_path / "a.idx.npz")
    assert again.extensions == index.extensions and again.bytes == tar.stat().st_size
    np.testing.assert_array_equal(again.places, index.places)


def test_a_cut_is_noticed_wherever_it_is(tmp_path):
    tar = write(tmp_path / "a.tar", samples=6)
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[5]
    positions = {
        "inside a member's data": member.offset_data + 10,
        "in a header": member.offset + 100,
        "between two members": member.offset,
        "in the padding after data": member.offset_data + member.size + 1,
        "in the end blocks": max(m.offset_data + 512 for m in tarfile.open(tar).getmembers()) + 100,
    }
    for where, position in positions.items():
        tar.write_bytes(whole[:position])
        with pytest.raises(BrokenShard, match=str(tar)):
            indices.scan(tar)
            pytest.fail(f"cut {where}, unnoticed")
    tar.write_bytes(whole)
    assert len(indices.scan(tar)) == 6


def test_hostile_members_are_neither_run_nor_indexed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    def add(archive, name, data=b"", **fields):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(data))

    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        for extension in ("pyd", "pkl", "pickle", "pth", "sh"):
            add(archive, f"000.{extension}", pickle.dumps(Attack()))
        add(archive, "000.txt", b"fine")
        add(archive, "../../002.txt", b"outside")
    with pytest.warns(UserWarning, match=r"\(.pickle\).*\(.pkl\).*\(.pth\).*\(.pyd\).*\(.sh\)"):
        index = indices.scan(tar)
    assert index.extensions == ["txt"]
    assert [index.key(i) for i in range(len(index))] == ["000", "../../002"]  # a key is a name, never a path we open
    assert not (tmp_path / "owned").exists()


def test_other_refusals(tmp_path):
    packed = tmp_path / "a.tar"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(write(tmp_path / "b.tar"), "x.txt")
    with pytest.raises(BrokenShard, match="not a readable plain tar"):
        indices.scan(packed)
    twice = tmp_path / "c.tar"
    with tarfile.open(twice, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("0.txt"), io.BytesIO())
    with pytest.raises(BrokenShard, match="there twice"):
        indices.scan(twice)
    tar = write(tmp_path / "e.tar")
    indices.save(indices.scan(tar), tmp_path / "d.idx.npz")
    whole = (tmp_path / "d.idx.npz").read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    for damaged in (b"nonsense", b"", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "d.idx.npz").write_bytes(damaged)
        with pytest.raises(BrokenShard, match="viewshards index"):
            indices.load(tmp_path / "d.idx.npz", digest)


def test_atomic_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), indices.atomic_write(target) as f:
        f.write(b"new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
