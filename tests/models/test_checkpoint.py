"""Weights files: what is read, and what is refused in one line without running a thing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from audit.errors import ModelError
from audit.models.checkpoint import hash_state, read_weights, save_weights

pytestmark = pytest.mark.unit
STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([0.5, -0.5])}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def refusal(path: Path) -> str:
    """Return the one line with which a file is refused."""
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert caught.value.fix
    return line


def test_safetensors_come_back_as_saved(tmp_path: Path) -> None:
    save_weights(STATE, tmp_path / "deep" / "w.safetensors")
    assert same(read_weights(tmp_path / "deep" / "w.safetensors"), STATE)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["w.safetensors"]  # no partial file is left


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"state_dict": {"model": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
    ids=["plain", "model", "state_dict", "twice", "module prefix", "both"],
)
def test_pytorch_files_are_unwrapped(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(STATE), tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), STATE)


def test_half_precision_is_read_as_float_and_counters_stay_whole(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([0.5, 0.25]).half(), "n": torch.tensor([3])}, tmp_path / "w.safetensors")
    state = read_weights(tmp_path / "w.safetensors")
    assert state["w"].dtype is torch.float32
    assert state["w"].tolist() == [0.5, 0.25]
    assert state["n"].dtype is torch.int64


class Attack:
    """A pickle that writes a file when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    torch.save({"head.weight": Attack(target)}, tmp_path / "w.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"head.weight": Attack(target)}))
    for name in ("w.pth", "old.pth"):
        assert "cannot be read as weights" in refusal(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0, 1, 9, 100, -20])
def test_a_damaged_file(suffix: str, keep: int, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{suffix}"
    save_file(STATE, whole) if suffix == "safetensors" else torch.save(STATE, whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:keep])
    assert "cannot be read as weights" in refusal(cut)


@pytest.mark.parametrize(
    "content", [b"hello\n", b"<html>Not found</html>", b"\x80\x02}q\x00.", b"PK\x03\x04 no zip", b"c"]
)
def test_something_else_under_the_name_of_weights(content: bytes, tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        line = refusal(tmp_path / name)
        assert "cannot be read as weights" in line
        assert "weights_only" not in line  # torch's own advice is to load it unsafely
        assert "\x1b" not in line


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such weights file" in refusal(tmp_path / "w.safetensors")
    assert "no such weights file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, torch.zeros(3), {"model": {}}], ids=["list", "empty", "tensor", "empty model"]
)
def test_no_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "holds no state dict" in refusal(tmp_path / "w.pth")


def test_what_is_not_a_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"head.weight": STATE["head.weight"], "epoch": 3}, tmp_path / "w.pth")
    assert "'epoch' is not a tensor" in refusal(tmp_path / "w.pth")


def test_the_hash_sees_one_bit_a_name_a_shape_and_a_type() -> None:
    original = hash_state(STATE)
    assert hash_state({k: v.clone() for k, v in reversed(STATE.items())}) == original
    bit = {k: v.clone() for k, v in STATE.items()}
    bit["head.bias"].view(torch.int32)[0] ^= 1
    others = [
        bit,
        {"head.weight": STATE["head.weight"], "tail.bias": STATE["head.bias"]},
        {**STATE, "head.weight": STATE["head.weight"].reshape(3, 2)},
        {**STATE, "head.bias": STATE["head.bias"].view(torch.int32)},
        {**STATE, "more": torch.zeros(0)},
    ]
    assert len({original, *map(hash_state, others)}) == 6


def test_the_hash_takes_numbers_without_dimensions() -> None:
    assert hash_state({"n": torch.tensor(1.0)}) != hash_state({"n": torch.tensor(2.0)})
