"""Every kind of file or folder that holds weights, and every way to put something before their names."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.distributed.checkpoint as dcp

from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.build import Backbone, LoadReport
from audit.models.predict import predict_logits
from tests.models_for_tests import enlarged, noise_pixels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.unit
State = dict[str, torch.Tensor]
BODY: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}
CLASSES = ["anger", "joy", "neutral"]
NAME = "vit_tiny_patch16_224"
SPEC: dict[str, Any] = {"name": NAME, "weights": "w", "classes": CLASSES, "image_size": 32, "overrides": BODY}


def made(seed: int = 0, *, classes: int = 3) -> Any:
    return enlarged(timm.create_model(NAME, num_classes=classes, img_size=32, **BODY), seed).eval()


def state(seed: int = 0) -> State:
    return dict(made(seed).state_dict())


def opened(path: Path, **spec: Any) -> tuple[Any, LoadReport]:
    model, report = Backbone(ModelSpec.model_validate({**SPEC, **spec}), path).build_as_is_reported(3)
    assert report is not None
    return model, report


def same_logits(model: Any, seed: int = 0) -> bool:
    pixels = noise_pixels(3)
    return np.array_equal(predict_logits(model, pixels), predict_logits(made(seed), pixels))


def refusal(path: Path, **spec: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        opened(path, **spec)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


# Containers: each writes the same weights, and returns what a card names


def one_file(name: str, wrap: Callable[[State], Any] = lambda s: s, **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(wrap(state()), folder / name, **options)
        return folder / name

    return write


def as_safetensors(folder: Path) -> Path:
    safetensors.torch.save_file(state(), folder / "w.safetensors")
    return folder / "w.safetensors"


def sharded(folder: Path, kind: str = "safetensors") -> Path:
    tensors, stem = state(), "model" if kind == "safetensors" else "pytorch_model"
    names = sorted(tensors)
    where = {name: f"{stem}-0000{1 + i % 2}-of-00002.{kind}" for i, name in enumerate(names)}
    for file in set(where.values()):
        part = {name: tensors[name] for name in names if where[name] == file}
        if kind == "safetensors":
            safetensors.torch.save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}), encoding="utf-8")
    return index


def distributed(folder: Path) -> Path:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    tensors = {"model": state(), "optim": optimizer.state_dict(), "epoch": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, checkpoint_id=folder / "step-3")
    return folder / "step-3"


def in_folder(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def named(folder: Path) -> Path:
        write(folder)
        return folder

    return named


CONTAINERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "safetensors": (as_safetensors, "safetensors"),
    "pth": (one_file("w.pth"), "PyTorch"),
    "pt, before zip files": (one_file("w.pt", _use_new_zipfile_serialization=False), "PyTorch"),
    "bin": (one_file("pytorch_model.bin"), "PyTorch"),
    "lightning": (one_file("last.ckpt", lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}}), "PyTorch"),
    "no suffix": (one_file("weights", lambda s: {"model": s}), "PyTorch"),
    "sharded safetensors": (sharded, "sharded"),
    "sharded bin": (lambda folder: sharded(folder, "bin"), "sharded"),
    "folder of shards": (in_folder(sharded), "sharded"),
    "folder of one file": (in_folder(as_safetensors), "safetensors"),
    "torch.distributed": (distributed, "torch.distributed"),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_logits(container: str, tmp_path: Path) -> None:
    write, kind = CONTAINERS[container]
    model, report = opened(write(tmp_path))
    assert same_logits(model)
    assert (report.kind, report.state, report.left_over) == (kind, "raw", ())
    assert report.stored == {"float32": len(state())}


@pytest.mark.parametrize("shard", ["", "1KB", "bin"])
def test_a_hugging_face_folder_in_one_file_or_several(shard: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    original = hf.ViTForImageClassification(hf.ViTConfig(**shape, intermediate_size=64, num_labels=3)).eval()
    original.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard == "1KB" else {}))
    if shard == "bin":
        torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    else:
        assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard
    model, report = opened(tmp_path, name="huggingface", overrides={}, image_size=None, mean=[0.5] * 3, std=[0.5] * 3)
    pixels = torch.from_numpy(noise_pixels(2)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), original(pixels).logits, rtol=1e-5, atol=1e-5)
    assert report.left_over == ()


@pytest.mark.parametrize("prefix", ["", "model.", "net.module."])
@pytest.mark.parametrize("named", [".", "last.ckpt"])
def test_a_hugging_face_model_that_lightning_saved(prefix: str, named: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    original = hf.ViTForImageClassification(hf.ViTConfig(**shape, intermediate_size=64, num_labels=3)).eval()
    original.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    held = before(prefix, saved) | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": {name: tensor.clone() for name, tensor in held.items()}}, tmp_path / "last.ckpt")
    options: dict[str, Any] = {"overrides": {}, "image_size": None, "mean": [0.5] * 3, "std": [0.5] * 3}
    model, report = opened(tmp_path / named, name="huggingface", **options)
    pixels = torch.from_numpy(noise_pixels(2)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), original(pixels).logits, rtol=1e-5, atol=1e-5)
    assert (report.stripped, report.left_over) == (prefix, ("criterion.weight",))


# Names


def before(prefix: str, tensors: State) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


WORDS = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "classifier_under_test."]
NESTED = [*WORDS, *(a + b for a in WORDS for b in WORDS if a != b), "a.b.c.d.e.", "0.", "model.0.module."]


@pytest.mark.parametrize("prefix", NESTED)
def test_whatever_is_before_all_names_is_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": before(prefix, state())}, tmp_path / "w.ckpt")
    model, report = opened(tmp_path / "w.ckpt")
    assert same_logits(model)
    assert (report.stripped, report.left_over, report.set_name) == (prefix, (), "state_dict")


@pytest.mark.parametrize("prefix", ["vit.", "module.student."])
def test_a_criterion_and_metrics_stand_beside_the_model(prefix: str, tmp_path: Path) -> None:
    beside = {
        "criterion.weight": torch.ones(3),
        "val_confmat.confmat": torch.zeros(3, 3),
        "train_acc.tp": torch.zeros(3),
        "loss_fn.centers": torch.zeros(3, 32),
        "step_of_schedule": torch.zeros(1),
    }
    torch.save({"state_dict": before(prefix, state()) | beside}, tmp_path / "w.ckpt")
    model, report = opened(tmp_path / "w.ckpt")
    assert same_logits(model)
    assert (report.stripped, report.left_over) == (prefix, tuple(sorted(beside)))


@pytest.mark.parametrize("body", ["backbone.", "model.encoder."])
@pytest.mark.parametrize("head", ["head", "classifier", "fc", "model.fc.0"])
def test_a_classifier_under_another_name_than_the_body(body: str, head: str, tmp_path: Path) -> None:
    own = state()
    classifier = {f"{head}.{kind}": own.pop(f"head.{kind}") for kind in ("weight", "bias")}
    torch.save({"state_dict": before(body, own) | classifier}, tmp_path / "w.ckpt")
    model, report = opened(tmp_path / "w.ckpt")
    assert same_logits(model)
    assert (report.stripped, report.classifier, report.left_over) == (body, head, ())


HALF_LOADED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "a neck": ({"neck.weight": (32, 32)}, "neck.weight"),
    "a scale": ({"temperature": (1,)}, "temperature"),
    "a norm": ({"norm.weight": (32,), "norm.bias": (32,)}, "norm.weight"),
    "a second classifier": ({"head2.weight": (3, 32), "head2.bias": (3,)}, "head"),
}


@pytest.mark.parametrize("case", HALF_LOADED)
def test_a_model_of_which_a_part_would_be_left_out_is_refused(case: str, tmp_path: Path) -> None:
    shapes, named = HALF_LOADED[case]
    own = state()
    classifier = {f"head.{kind}": own.pop(f"head.{kind}") for kind in ("weight", "bias")}
    beside = {name: torch.ones(shape) for name, shape in shapes.items()}
    torch.save(before("backbone.", own) | classifier | beside, tmp_path / "w.pth")
    assert named in refusal(tmp_path / "w.pth").what


def test_what_comes_before_the_last_layer_of_a_sequence_is_not_guessed(tmp_path: Path) -> None:
    own = state()
    classifier = {f"head.1.{kind}": own.pop(f"head.{kind}") for kind in ("weight", "bias")}
    torch.save(before("backbone.", own) | classifier, tmp_path / "w.pth")
    assert "it lacks head.weight, head.bias" in refusal(tmp_path / "w.pth").what


def test_a_matrix_beside_a_whole_model_may_be_part_of_it(tmp_path: Path) -> None:
    torch.save(before("model.", state()) | {"adapter.lora_A": torch.zeros(4, 32)}, tmp_path / "w.pth")
    assert "adapter.lora_A" in refusal(tmp_path / "w.pth").what


def test_two_models_in_one_state_dict_are_not_chosen_between(tmp_path: Path) -> None:
    torch.save(before("student.", state(0)) | before("teacher.", state(1)), tmp_path / "w.pth")
    assert "2 models of one architecture: student, teacher" in refusal(tmp_path / "w.pth").what


@pytest.mark.parametrize("outer", ["", "net.", "module.lit."])
def test_averaged_weights_are_found_at_any_depth(outer: str, tmp_path: Path) -> None:
    both = before("model.", state(0)) | before("model_ema.module.", state(1))
    torch.save({"state_dict": before(outer, both) | {"criterion.weight": torch.ones(3)}}, tmp_path / "w.ckpt")
    for seed, chosen in enumerate(("raw", "ema")):
        model, report = opened(tmp_path / "w.ckpt", state=chosen)
        assert same_logits(model, seed)
        assert report.state == chosen
    assert "2 sets of weights" in refusal(tmp_path / "w.ckpt").what


def test_a_layer_that_is_called_an_average_is_none(tmp_path: Path) -> None:
    own = {name.replace("blocks.1.attn.", "blocks.1.ema."): tensor for name, tensor in state().items()}
    torch.save(own, tmp_path / "w.pth")
    assert "blocks.1" in refusal(tmp_path / "w.pth").what  # one set, of another architecture


def test_weights_to_start_from_need_no_classifier(tmp_path: Path) -> None:
    own = {name: tensor for name, tensor in state().items() if not name.startswith("head.")}
    torch.save({"teacher": before("backbone.", own) | {"head.mlp.0.weight": torch.ones(8, 32)}}, tmp_path / "dino.pth")
    model, report = Backbone(ModelSpec.model_validate(SPEC), tmp_path / "dino.pth").build_reported(5)
    assert report is not None
    assert (report.stripped, report.left_over) == ("backbone.", ("head.mlp.0.weight",))
    assert torch.equal(model.state_dict()["blocks.1.mlp.fc1.weight"], own["blocks.1.mlp.fc1.weight"])


# Types


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("container", ["safetensors", "pth"])
def test_other_types_are_loaded_as_float32(kind: str, container: str, tmp_path: Path) -> None:
    stored = {name: tensor.to(getattr(torch, kind)) for name, tensor in state().items()}
    if container == "pth":
        torch.save(stored, tmp_path / "w.pth")
    else:
        safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    model, report = opened(tmp_path / f"w.{container}")
    assert report.stored == {kind: len(stored)}
    assert all(t.dtype is torch.float32 for t in model.state_dict().values())
    assert all(torch.equal(model.state_dict()[name], tensor.float()) for name, tensor in stored.items())


@pytest.mark.parametrize("kind", ["int8", "uint8", "float8_e4m3fn"])
def test_eight_bits_with_a_scale_elsewhere_are_refused(kind: str, tmp_path: Path) -> None:
    name = "blocks.0.mlp.fc1.weight"
    own = state() | {name: state()[name].to(getattr(torch, kind))}
    if kind.startswith("float8"):
        own["blocks.0.mlp.fc1.weight_scale"] = torch.ones(())
    safetensors.torch.save_file(own, tmp_path / "w.safetensors")
    error = refusal(tmp_path / "w.safetensors")
    assert f"{name} is stored in 8 bits ({kind})" in error.what


# Refusals


def test_a_pickle_that_needs_code_is_refused_with_the_lines_that_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the lines name whole paths
    settings = {"pool": torch.nn.Identity(), "cut": torch.nn.functional.relu}
    for content in (made(), {"model": made(), "epoch": 3}, {"state_dict": state(), "hyper_parameters": settings}):
        torch.save(content, tmp_path / "w.pth")
        error = refusal(tmp_path / "w.pth")
        assert "its pickle runs code (" in error.what
        _, lines = error.fix.split(": ", 1)
        exec(lines, {})  # whoever trusts it
        assert same_logits(opened(tmp_path / "w-weights.pth")[0])


def test_the_lines_that_convert_a_pickle_keep_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    averaged = {name: tensor + 1 for name, tensor in state().items()}
    torch.save({"state_dict": state(), "state_dict_ema": averaged, "config": torch.nn.functional.relu}, "w.pth")
    exec(refusal(Path("w.pth")).fix.split(": ", 1)[1], {})
    assert "holds 2 sets of weights: state_dict (raw), state_dict_ema (ema)" in str(refusal(Path("w-weights.pth")))


class Touch:
    """A pickle that writes a file when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("place", ["planner_data", "itself", "storage_data"])
def test_the_description_of_a_distributed_checkpoint_runs_nothing(place: str, tmp_path: Path) -> None:
    folder, target = distributed(tmp_path), tmp_path / "owned"
    described = pickle.loads((folder / ".metadata").read_bytes())
    if place == "itself":
        described = Touch(target)
    else:
        setattr(described, place, Touch(target))
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    error = refusal(folder)
    assert "is not the description of a torch.distributed checkpoint alone" in error.what
    assert not target.exists()


@pytest.mark.parametrize("path", ["../outside.distcp", "/etc/passwd"])
def test_a_distributed_checkpoint_stays_in_its_folder(path: str, tmp_path: Path) -> None:
    folder = distributed(tmp_path)
    described = pickle.loads((folder / ".metadata").read_bytes())
    for place in described.storage_data.values():
        place.relative_path = path
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    assert "cannot be read as a torch.distributed checkpoint" in refusal(folder).what


@pytest.mark.parametrize("keep", [0, 100, -50])
@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_damaged_distributed_checkpoint(file: str, keep: int, tmp_path: Path) -> None:
    folder = distributed(tmp_path)
    (folder / file).write_bytes((folder / file).read_bytes()[:keep])
    refused = refusal(folder)
    assert refused.where == str(folder / file if file == ".metadata" else folder)
    assert "torch.distributed checkpoint" in refused.what


INDICES: dict[str, tuple[Any, str]] = {
    "no map": ({"metadata": {}}, "is no index"),
    "empty": ({"weight_map": {}}, "is no index"),
    "a list": ([], "is no index"),
    "outside": ({"weight_map": {"a": "../w.safetensors"}}, "outside its folder"),
    "gone": ({"weight_map": {"a": "gone-1.safetensors", "b": "gone-2.bin"}}, "2 of 2 files are missing"),
    "not there": ({"weight_map": {"nothing": "model-00001-of-00002.safetensors"}}, "lacks nothing"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_does_not_fit(case: str, tmp_path: Path) -> None:
    content, said = INDICES[case]
    index = sharded(tmp_path)
    index.write_text(json.dumps(content), encoding="utf-8")
    assert said in str(refusal(index))


def test_a_folder_of_several_files_is_not_chosen_from(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save(state(), tmp_path / name)
    assert "holds 2 files of weights: a.pth, b.pth" in refusal(tmp_path).what


FIXED = 8e6  # bytes; what opening takes of a file of any size
MEASURE = """
import ctypes, gc, sys
from pathlib import Path
from audit.card.schema import ModelSpec
from audit.models.build import Backbone

def peak():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))

spec = ModelSpec(name="vit_small_patch16_224", weights="w", classes=list("abc"))
folder = ModelSpec(name="huggingface", weights="w", classes=list("abc"), mean=[0.5] * 3, std=[0.5] * 3)
Backbone(spec.model_copy(update={"name": "vit_tiny_patch16_224", "weights": "none"}), None).build(3)
for path in map(Path, sys.argv[1:]):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free counts no longer
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    Backbone(folder if (path / "config.json").exists() else spec, path).build_as_is(3)
    print(peak() - before)
"""


KINDS = ("w.safetensors", "w.ckpt", "dcp", "half.safetensors", "half.ckpt", "half-dcp", "half")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system counts no peak that can be reset")
@pytest.mark.parametrize("kinds", [("w.ckpt", "half.safetensors", "dcp"), pytest.param(KINDS, marks=pytest.mark.long)])
def test_opening_takes_no_more_than_two_and_a_half_times_the_file(kinds: tuple[str, ...], tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch16_224", num_classes=3)
    tensors = dict(model.state_dict())
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    moments = {"state": {i: {"exp_avg": p, "exp_avg_sq": p + 1} for i, p in enumerate(tensors.values())}}
    torch.save({"state_dict": before("model.", tensors), "optimizer_states": [moments]}, tmp_path / "w.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": tensors, "optim": moments}, checkpoint_id=tmp_path / "dcp")
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        dcp.save({"model": halves}, checkpoint_id=tmp_path / "half-dcp")
    safetensors.torch.save_file(halves, tmp_path / "half.safetensors")
    torch.save({"state_dict": before("model.", halves)}, tmp_path / "half.ckpt")
    if "half" in kinds:
        hf.ViTForImageClassification(hf.ViTConfig(num_hidden_layers=6, num_labels=3)).half().save_pretrained(
            tmp_path / "half"
        )
    paths = [tmp_path / name for name in (kinds[-1], *kinds)]  # the first loads code, whose pages count
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MEASURE, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    of_kind = {path: size / 2 if path.name.startswith("half") else size for path in paths}
    if "half" in kinds:
        of_kind[tmp_path / "half"] = sum(file.stat().st_size for file in (tmp_path / "half").iterdir())
    sizes = [of_kind[path] for path in paths]
    taken = [(int(line) - FIXED) / of for line, of in zip(done.stdout.split(), sizes, strict=True)]
    assert round(max(taken[1:]), 2) <= 2.5, taken[1:]  # some pages are the process's own
