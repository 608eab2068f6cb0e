"""CIFAR-100 in its published forms, read without unpickling anything but arrays."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from audit.card.schema import DataSpec
from audit.data import read_control_images
from audit.data.readers import cifar100
from audit.errors import DataError
from tests.data.faces import write_images
from tests.data.loopback import serving

pytestmark = pytest.mark.unit

NAMES = ["apple", "bear", "crab"]


def planes(count: int) -> np.ndarray:
    """Return images that are red at the top left and blue below."""
    pixels = np.zeros((count, 3, 32, 32), dtype=np.uint8)
    pixels[:, 0, 0, :] = 200
    pixels[:, 2, 1:, :] = 100
    return pixels.reshape(count, 3072)


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n")
    for split, labels in (("train", [0, 1, 2, 1]), ("test", [2, 1, 0])):
        heads = np.array([[7, label] for label in labels], dtype=np.uint8)
        (folder / f"{split}.bin").write_bytes(np.hstack([heads, planes(len(labels))]).tobytes())


def control(folder: Path, reader: str = "cifar100", **changes: Any) -> Any:
    spec = DataSpec.model_validate({"reader": reader, "path": folder.name, **changes})
    return read_control_images(spec, base=folder.parent)


def test_the_binary_version(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar" / "cifar-100-binary")
    images = control(tmp_path / "cifar")
    assert images.frame["label"].tolist() == ["crab", "bear", "apple", "apple", "bear", "crab", "bear"]
    assert images.frame["split"].tolist() == ["test"] * 3 + ["train"] * 4
    picture = images.source.open("train/00003")
    assert picture.size == (32, 32)
    assert picture.getpixel((31, 0)) == (200, 0, 0)
    assert picture.getpixel((0, 1)) == (0, 0, 100)
    for key in ("train/00004", "val/00000", "train/-1", "x"):
        with pytest.raises(DataError, match="no such image"):
            images.source.open(key)


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    write_binary(folder)
    content = (folder / "test.bin").read_bytes()
    (folder / "test.bin").write_bytes(content[:-1])
    with pytest.raises(DataError, match="no multiple of 3074 bytes; download it again"):
        control(folder)
    (folder / "test.bin").write_bytes(b"\x00\x63" + content[2:])
    with pytest.raises(DataError, match="class 99 has no name"):
        control(folder)


def python_files(dump: Any = pickle.dumps) -> dict[str, bytes]:
    return {
        "meta": dump({"fine_label_names": NAMES}),
        "train": dump({"data": planes(3), "fine_labels": [0, 1, 2], "filenames": ["a", "b", "c"]}),
        "test": dump({"data": planes(3), "fine_labels": [2, 1, 0]}),
    }


def as_numpy_1(value: Any) -> bytes:
    """Pickle as the published files are: old protocol, numpy's old module names."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_the_python_version_reads_like_the_binary_one(tmp_path: Path) -> None:
    content = python_files(as_numpy_1)
    assert b"numpy.core.multiarray" in content["train"]
    frame, source = cifar100.from_pickles(content, "here")
    assert frame["label"].tolist() == ["crab", "bear", "apple", "apple", "bear", "crab"]
    assert source.open("test/00000").getpixel((0, 1)) == (0, 0, 100)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_a_pickle_that_runs_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (Attack(), {"data": Attack()}, {"data": io.BytesIO()}):
        with pytest.raises(DataError, match="refused, not a plain CIFAR-100 file"):
            cifar100.unpickle_arrays(pickle.dumps(value), "train")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="not a CIFAR-100 file; download it again"):
        cifar100.unpickle_arrays(pickle.dumps([1]), "train")


def test_files_with_another_checksum_are_not_even_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in python_files().items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="train: its checksum is not that of the published file"):
        control(tmp_path / "cifar")


def test_offline_and_absent_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_AUDIT_OFFLINE", "1")
    with pytest.raises(DataError, match="put cifar-100-binary there, or unset VIT_AUDIT_OFFLINE"):
        control(tmp_path / "cifar")
    assert not list(tmp_path.iterdir())


def published_at(url: str, packed: bytes) -> SimpleNamespace:
    """Return what torchvision says of a data set."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in python_files().items()}
    return SimpleNamespace(
        url=url,
        tgz_md5=hashlib.md5(packed).hexdigest(),
        train_list=[["train", md5["train"]]],
        test_list=[["test", md5["test"]]],
        meta={"filename": "meta", "md5": md5["meta"]},
    )


def test_what_is_absent_is_downloaded_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in python_files().items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.delenv("VIT_AUDIT_OFFLINE", raising=False)
    with serving({"/a.tar.gz": packed.getvalue()}) as address:
        published = published_at(f"{address}/b.tar.gz", packed.getvalue())
        monkeypatch.setattr("torchvision.datasets.CIFAR100", published)
        with pytest.raises(
            DataError, match=r"could not be downloaded \(could not be fetched \(404 Not Found\)\); fetch ht"
        ):
            control(tmp_path / "cifar")
        assert not list((tmp_path / "cifar").iterdir())
        published.url = f"{address}/a.tar.gz"
        assert len(control(tmp_path / "cifar").frame) == 6
    assert len(control(tmp_path / "cifar").frame) == 6  # without the network


def test_class_folders_and_a_choice_of_labels(tmp_path: Path) -> None:
    root = tmp_path / "cifar"
    names = [f"{split}/{name}/{n}.png" for split in ("train", "test") for name in NAMES for n in range(2)]
    write_images(root, names)
    images = control(root, labels=["bear", "crab"])
    assert images.frame.groupby(["split", "label"]).size().tolist() == [2, 2, 2, 2]
    assert images.source.open("test/bear/1.png").size == (12, 10)
    with pytest.raises(DataError, match=r"no images of 'bea'; did you mean 'bear'\?"):
        control(root, labels=["bea", "crab"])
    (root / "test/bear/0.png").unlink()
    (root / "test/bear/1.png").unlink()
    with pytest.raises(DataError, match="class 'bear' has no test image"):
        control(root)


def test_plain_class_folders_are_split_by_class(tmp_path: Path) -> None:
    root = tmp_path / "own"
    write_images(root, [f"{name}/{n:02d}.png" for name in NAMES for n in range(10)])
    images = control(root, reader="folder")
    assert images.frame.groupby(["split", "label"]).size().to_dict() == {
        (split, name): count for split, count in (("train", 8), ("test", 2)) for name in NAMES
    }
    with pytest.raises(DataError, match="reader 'table' has no control images"):
        control(root, reader="table")
