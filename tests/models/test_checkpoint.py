"""Weights files: what is read, and what is refused in one line without running a thing."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from audit.errors import ModelError
from audit.models.checkpoint import hash_state, open_checkpoint, save_weights, started_from

pytestmark = pytest.mark.unit


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    return open_checkpoint(path).take(None).tensors


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


def test_the_same_weights_are_the_same_file(tmp_path: Path) -> None:
    """The library writes metadata in an order that is drawn for each file."""
    about = '{"résize": "\\n\\"x\\""}'
    for i in range(12):
        save_weights(STATE, tmp_path / f"{i}.safetensors", started_from="a" * 64, preprocessing=about)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as opened:
        assert opened.metadata() == {"started_from": "a" * 64, "vit-audit.preprocessing": about}
    assert started_from(tmp_path / "0.safetensors") == "a" * 64
    assert same(read_weights(tmp_path / "0.safetensors"), STATE)


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


RAW, EMA = STATE, {k: v + 1 for k, v in STATE.items()}


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


BOTH: dict[str, Any] = {
    "timm": {"state_dict": RAW, "state_dict_ema": EMA, "epoch": 3, "arch": "vit_tiny_patch16_224", "metric": 0.5},
    "deit": {"model": RAW, "model_ema": EMA, "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}}},
    "ema beside": {"model": RAW, "ema": EMA},
    "ema, its decay and its weights": {"model": RAW, "ema": {"decay": torch.tensor(0.999), "module": EMA}},
    "beside in one state dict": {"state_dict": prefixed("model.", RAW) | prefixed("model_ema.module.", EMA)},
    "ema-pytorch": prefixed("online_model.", RAW) | prefixed("ema_model.", EMA) | {"initted": torch.tensor([True])},
    "callback": {
        "state_dict": RAW,
        "callbacks": {"EMACallback": {"ema_state_dict": EMA}, "stop": {"best_score": torch.tensor(0.3)}},
    },
    "lightning's average": {
        "state_dict": EMA, "current_model_state": RAW, "averaging_state": {"n_averaged": torch.tensor(9)},
    },
    "a loss's weights too": {"model": RAW, "model_ema": EMA, "criterion": {"weight": torch.ones(3)}},
}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_of_several_sets_the_card_must_say_which_is_in_use(name: str, tmp_path: Path) -> None:
    torch.save(BOTH[name], tmp_path / "w.pth")
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    assert same(checkpoint.take("raw").tensors, RAW)
    assert same(checkpoint.take("ema").tensors, EMA)
    line = refusal(tmp_path / "w.pth")
    assert "holds 2 sets of weights: " in line
    assert line.count("(raw)") == line.count("(ema)") == 1
    assert "model.state: ema, or raw" in line


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (STATE, "raw"),
        ({"state_dict_ema": STATE}, "ema"),
        ({"n_averaged": torch.tensor(3), **prefixed("module.", STATE)}, "ema"),  # torch.optim.swa_utils.AveragedModel
        (prefixed("ema_model.", STATE), "ema"),
    ],
    ids=["plain", "only averaged", "swa", "prefix"],
)
def test_a_single_set_is_taken_and_says_what_it_is(content: Any, state: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    assert checkpoint.take(None).state == state
    assert same(checkpoint.take(state).tensors, STATE)
    other: Any = {"raw": "ema", "ema": "raw"}[state]
    with pytest.raises(ModelError, match=f"holds no {other} weights, only"):
        checkpoint.take(other)


def test_two_averages_cannot_be_told_apart(tmp_path: Path) -> None:
    torch.save({"state_dict": RAW, "ema_0.99": EMA, "ema_0.999": EMA}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"holds 3 sets .* save the one in use"):
        open_checkpoint(tmp_path / "w.pth").take("ema")


@pytest.mark.parametrize("prefix", ["model.", "net.", "_orig_mod.", "model.module.", "module.model._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(prefix, STATE)}, tmp_path / "last.ckpt")
    assert same(read_weights(tmp_path / "last.ckpt"), STATE)


def test_what_training_scripts_store_beside_weights_is_read(tmp_path: Path) -> None:
    args = argparse.Namespace(model="vit_tiny_patch16_224", model_kwargs={"num_heads": 2}, out=Path("runs"))
    torch.save({"state_dict": STATE, "args": args, "metric": np.float64(81.5)}, tmp_path / "w.pth.tar")
    checkpoint = open_checkpoint(tmp_path / "w.pth.tar")
    assert same(checkpoint.take(None).tensors, STATE)
    assert (checkpoint.heads, checkpoint.architecture) == (2, "vit_tiny_patch16_224")


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("inf"), "infinite values")])
def test_values_that_are_not_finite_are_named(value: float, said: str, tmp_path: Path) -> None:
    state = {**{f"b{i}.weight": torch.tensor([value]) for i in range(7)}, "sound": torch.zeros(2)}
    save_file({**state, "n": torch.tensor([3])}, tmp_path / "w.safetensors")
    line = refusal(tmp_path / "w.safetensors")
    assert f"b0.weight, b1.weight, b2.weight, b3.weight, b4.weight and 2 more hold {said}" in line
    assert "sound" not in line


def test_what_type_was_stored_is_known(tmp_path: Path) -> None:
    half = {"w": torch.tensor([0.5, 0.25]).half(), "b": torch.tensor([0.5, 0.25]).bfloat16(), "n": torch.tensor([3])}
    save_file({**half, "c": torch.zeros(1).half()}, tmp_path / "w.safetensors")
    found = open_checkpoint(tmp_path / "w.safetensors").take(None)
    assert found.stored == {"float16": 2, "bfloat16": 1, "int64": 1}
    assert all(found.tensors[name].tolist() == tensor.tolist() for name, tensor in half.items())


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
    assert "cannot be read as weights alone: its pickle runs code (getattr)" in refusal(tmp_path / "w.pth")
    assert "cannot be read as weights" in refusal(tmp_path / "old.pth")
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
    assert "holds no weights; name a .safetensors" in refusal(tmp_path)


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
