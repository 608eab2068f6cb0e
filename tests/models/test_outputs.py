"""Which output of a model is audited: one of several heads, a single logit, what a checkpoint says of itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vit_audit as va
from audit.card.schema import ModelSpec
from audit.errors import CardError, ModelError
from audit.models.build import Backbone
from audit.models.outputs import take_output
from audit.models.readout import Readout, readout_of
from audit.patching.sweep import measure_unpatched
from tests.models_for_tests import FAMILIES, noise_images, noise_pixels, tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.unit
IMAGES = noise_images(3)
NORMAL = {"mean": [0.5] * 3, "std": [0.5] * 3}
SPEC = {
    "name": "vit_tiny_patch16_224", "weights": "w.safetensors", "image_size": 32,
    "overrides": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4},
}  # fmt: skip


def saved(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


class Several(nn.Module):
    """A body with two heads that reads a picture once and returns a mapping, or a tuple."""

    def __init__(self, body: Any, *, width: int = 32, as_tuple: bool = False) -> None:
        super().__init__()
        self.body, self.as_tuple = body, as_tuple
        self.body.reset_classifier(0)
        self.heads = nn.ModuleDict({"emotion": nn.Linear(width, 3), "smiling": nn.Linear(width, 1)})

    def forward(self, images: torch.Tensor) -> Any:
        read = self.body(images)
        found = {name: head(read) for name, head in self.heads.items()}
        return tuple(found.values()) if self.as_tuple else found


# One logit


@pytest.mark.parametrize("family", ["class token", "distilled", "swin", "resnet, basic", "convnext"])
def test_one_logit_is_given_as_nought_and_itself(family: str) -> None:
    module = tiny(family, classes=1)
    net = va.wrap(module, ["no", "yes"], output="sigmoid", **NORMAL)
    with torch.inference_mode():
        wanted, found = module(IMAGES), net.module(IMAGES)
    assert found[:, 0].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(found[:, 1:], wanted, rtol=1e-5, atol=1e-5)
    assert readout_of(net.module) == Readout("sigmoid", "threshold", 0.5, one_logit=True)


def test_a_file_of_one_logit_is_read_only_as_what_it_is_said_to_be(tmp_path: Path) -> None:
    module = tiny(classes=1)
    path = saved(module.state_dict(), tmp_path)
    with pytest.raises(ModelError, match=r"has 1 outputs, the card names 2 classes; .*output: sigmoid"):
        Backbone(ModelSpec(**SPEC), path).build_as_is(2)
    model = Backbone(ModelSpec(**SPEC, output="sigmoid", decision="argmax"), path).build_as_is(2)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES)[:, 1:], module(IMAGES), rtol=1e-5, atol=1e-5)
    assert readout_of(model) == Readout("sigmoid", "argmax", one_logit=True)


def test_a_folder_of_one_label_is_read_as_the_card_says(folder: Callable[..., Path]) -> None:
    fields = {"name": "huggingface", "weights": "folder", "classes": ["no", "yes"], "output": "sigmoid"}
    model = Backbone(ModelSpec(**fields), where := folder(None, labels=1)).build_as_is(2)
    with torch.inference_mode():
        wanted = hf.ViTForImageClassification.from_pretrained(where).eval()(pixel_values=IMAGES).logits
        torch.testing.assert_close(model(IMAGES)[:, 1:], wanted, rtol=1e-5, atol=1e-5)
    assert readout_of(model).one_logit


def test_two_sigmoids_are_no_pair(tmp_path: Path) -> None:
    path = saved(tiny(classes=2).state_dict(), tmp_path)
    model = Backbone(ModelSpec(**SPEC, output="sigmoid"), path).build_as_is(2)
    assert readout_of(model) == Readout("sigmoid", "threshold", 0.5)


def test_a_new_classifier_is_read_by_softmax(tmp_path: Path) -> None:
    """Control models are trained here, whatever the audited model's outputs are."""
    backbone = Backbone(ModelSpec(**SPEC, output="sigmoid"), saved(tiny(classes=1).state_dict(), tmp_path))
    assert readout_of(backbone.build(2)) == readout_of(backbone.build_untrained(2)) == Readout()
    net = va.wrap(tiny(classes=2), ["no", "yes"], output="sigmoid", **NORMAL)
    assert readout_of(net.backbone.build(2)) == readout_of(net.backbone.build_untrained(2)) == Readout()


# What a checkpoint says of itself


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def made(problem: str | None, *, labels: int = 3) -> Path:
        config = hf.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
            intermediate_size=64, num_labels=labels,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # the same weights, whatever ran before
            torch.manual_seed(0)
            hf.ViTForImageClassification(config).save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "problem_type": problem}), encoding="utf-8")
        normal = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(normal), encoding="utf-8")
        return tmp_path

    return made


def of_folder(where: Path, **fields: Any) -> Readout:
    return readout_of(Backbone(ModelSpec(name="huggingface", weights="folder", **fields), where).build_as_is(3))


def test_a_folder_says_how_it_is_read(folder: Callable[..., Path]) -> None:
    for problem in (None, "single_label_classification"):
        assert of_folder(folder(problem)) == Readout()
    where = folder("multi_label_classification")
    assert of_folder(where) == Readout("sigmoid", "threshold", 0.5)
    assert of_folder(where, threshold=0.3) == Readout("sigmoid", "threshold", 0.3)
    assert of_folder(where, decision="argmax") == Readout("sigmoid", "argmax")
    assert of_folder(where, output="softmax") == Readout()
    module = hf.ViTForImageClassification.from_pretrained(where)
    assert readout_of(va.wrap(module, ["a", "b", "c"], **NORMAL).module) == Readout("sigmoid", "threshold", 0.5)


def test_a_folder_of_several_labels_gives_the_librarys_own_answers(folder: Callable[..., Path]) -> None:
    where, pixels = folder("multi_label_classification"), noise_pixels(40)
    module = hf.ViTForImageClassification.from_pretrained(where).eval()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        module.classifier.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
        module.classifier.bias.sub_(module(pixel_values=images).logits.mean(dim=0))  # about half of the answers are yes
    module.save_pretrained(where)
    with torch.inference_mode():
        wanted = module(pixel_values=images).logits.sigmoid().double().numpy()
    net = va.load_model({"name": "huggingface", "weights": str(where)})
    table = measure_unpatched(net.module, pixels, np.arange(40), {name: i for i, name in enumerate(net.classes)})
    p, called = (table[[f"{kind}:{name}" for name in net.classes]].to_numpy() for kind in ("p", "called"))
    np.testing.assert_allclose(p, wanted, atol=1e-5)
    assert 0.1 < called.mean() < 0.9
    assert (called == (wanted >= 0.5)).all()
    assert set(called.sum(axis=1)) != {1}


def test_a_regression_is_refused(folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="problem_type 'regression': its outputs are no classes"):
        of_folder(folder("regression"), output="sigmoid")


# Several outputs


@pytest.mark.parametrize(("family", "width"), [("class token", 32), ("average pool", 32), ("resnet, basic", 32)])
def test_one_output_of_a_module_is_taken_by_its_key(family: str, width: int) -> None:
    module = Several(tiny(family), width=width).eval()
    net = va.wrap(module, ["a", "b", "c"], output_key="emotion", **NORMAL)
    with torch.inference_mode():
        torch.testing.assert_close(net.module(IMAGES), module(IMAGES)["emotion"], rtol=1e-5, atol=1e-5)
    other = va.wrap(module, ["no", "yes"], output_key="smiling", output="sigmoid", **NORMAL)
    with torch.inference_mode():
        torch.testing.assert_close(other.module(IMAGES)[:, 1:], module(IMAGES)["smiling"], rtol=1e-5, atol=1e-5)
    assert (net.spec.output_key, other.spec.output_key) == ("emotion", "smiling")


def test_one_output_of_a_tuple_is_taken_by_its_place() -> None:
    module = Several(tiny(), as_tuple=True).eval()
    net = va.wrap(module, ["a", "b", "c"], output_key=0, **NORMAL)
    with torch.inference_mode():
        torch.testing.assert_close(net.module(IMAGES), module(IMAGES)[0], rtol=1e-5, atol=1e-5)


def test_a_module_of_several_outputs_names_them() -> None:
    module = Several(tiny()).eval()
    with pytest.raises(ModelError, match="returns emotion, smiling; name the one to audit"):
        va.wrap(module, ["a", "b", "c"], **NORMAL)
    with pytest.raises(ModelError, match="returns no 'age'; name one of emotion, smiling"):
        va.wrap(module, ["a", "b", "c"], output_key="age", **NORMAL)
    with pytest.raises(ModelError, match="no part of it is a model of a supported family"):
        va.wrap(nn.Linear(2, 2), ["a", "b"], output_key="age")


def test_a_head_that_reads_something_else_is_refused() -> None:
    """The identity of the pass shows it: what the head reads is not what a classifier of the body reads."""

    class Doubled(Several):
        def forward(self, images: torch.Tensor) -> Any:
            read = self.body(images)
            return {name: head(2 * read) for name, head in self.heads.items()}

    with pytest.raises(ModelError, match="its forward pass is not that of"):
        va.wrap(Doubled(tiny()).eval(), ["a", "b", "c"], output_key="emotion", **NORMAL)

    class Deep(Several):
        def forward(self, images: torch.Tensor) -> Any:
            return {name: head(self.body(images)).tanh() for name, head in self.heads.items()}

    with pytest.raises(ModelError, match="'emotion' is not what a linear layer gives"):
        va.wrap(Deep(tiny()).eval(), ["a", "b", "c"], output_key="emotion", **NORMAL)


@pytest.mark.parametrize("key", ["emotion", "heads.emotion"])
def test_one_output_of_a_file_is_taken_by_its_name(key: str, tmp_path: Path) -> None:
    module = Several(tiny()).eval()
    path = saved(module.state_dict(), tmp_path)
    model = Backbone(ModelSpec(**SPEC, output_key=key), path).build_as_is(3)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), module(IMAGES)["emotion"], rtol=1e-5, atol=1e-5)
    pair = Backbone(ModelSpec(**SPEC, output_key="smiling", output="sigmoid"), path).build_as_is(2)
    with torch.inference_mode():
        torch.testing.assert_close(pair(IMAGES)[:, 1:], module(IMAGES)["smiling"], rtol=1e-5, atol=1e-5)
    assert Backbone(ModelSpec(**SPEC, output_key=key), path).build(2).num_classes == 2


def test_a_file_of_several_outputs_names_them(tmp_path: Path) -> None:
    path = saved(Several(tiny()).state_dict(), tmp_path)
    with pytest.raises(ModelError, match=r"has several outputs: heads\.emotion, heads\.smiling; name one"):
        Backbone(ModelSpec(**SPEC), path).build_as_is(3)
    with pytest.raises(ModelError, match=r"'age' is no linear layer on 32 numbers .*heads\.emotion, heads\.smiling"):
        Backbone(ModelSpec(**SPEC, output_key="age"), path).build_as_is(3)


def test_what_lies_between_body_and_heads_is_not_left_out(tmp_path: Path) -> None:
    state = Several(tiny()).state_dict()
    state["neck.weight"], state["neck.bias"] = torch.eye(32), torch.zeros(32)
    path = saved(state, tmp_path)
    with pytest.raises(ModelError, match=r"it has neck\.bias, neck\.weight"):
        Backbone(ModelSpec(**SPEC, output_key="emotion"), path).build_as_is(3)
    deep = {k.replace("heads.emotion", "heads.emotion.0"): v for k, v in Several(tiny()).state_dict().items()}
    deep |= {"heads.emotion.2.weight": torch.ones(3, 3)}
    with pytest.raises(ModelError, match="'emotion' is no linear layer"):
        Backbone(ModelSpec(**SPEC, output_key="emotion"), saved(deep, tmp_path)).build_as_is(3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_one_output_is_read_as_ever(family: str) -> None:
    model = tiny(family)
    tensors = model.state_dict()
    assert take_output(model, tensors, None, "file") is tensors


# The card


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"model": {"output": "sigmoid"}}, "model.output"),
        ({"model": {"decision": "argmax", "threshold": 0.4}}, "model.threshold"),
        ({"model": {"threshold": 1.0}}, "model.threshold"),
        ({"model": {"output": "logits"}}, "model.output"),
    ],
)
def test_fields_that_disagree_are_named(sections: dict[str, Any], place: str) -> None:
    with pytest.raises(CardError, match=place):
        va.Card(data={"path": "faces.csv"}, groups={"gender": {"column": "gender"}}, **sections)
