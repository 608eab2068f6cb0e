"""Zero-shot classifiers: from files and prompts to logits as the library's own code gives them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file

import vit_audit as va
from audit.controls.identities import Subject, run_identities
from audit.errors import InputError
from audit.records import PromptSensitivity, WhyNoSensitivity
from audit.report.text import Sentences
from tests.models.awkward_images import write_awkward_images
from tests.models.small_towers import OPEN_CLIP, hf, make_open_clip, write_hf, write_open_clip
from tests.models.test_preprocessing import near, rgb
from tests.report.examples import examples

pytestmark = pytest.mark.unit
ONE = {"happy": ["a photo of a happy person"], "sad": ["a photo of somebody who is sad"], "calm": ["calm"]}
SEVERAL = {"happy": ["a happy person", "joy"], "sad": ["a sad person", "tears"], "calm": ["a calm person", "peace"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_awkward_images(tmp_path_factory.mktemp("awkward"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts_of(prompts: dict[str, list[str]]) -> list[str]:
    return [text for texts in prompts.values() for text in texts]


@torch.inference_mode()
def hf_logits(folder: Path, files: list[Path], prompts: dict[str, list[str]]) -> torch.Tensor:
    """Return the library's own logits of images and texts, one text a class."""
    model = hf.AutoModel.from_pretrained(folder).eval()
    tokenizer, clip = hf.AutoTokenizer.from_pretrained(folder), model.config.model_type == "clip"
    padding: dict[str, Any] = {"padding": True} if clip else {"padding": "max_length", "max_length": 40}
    inputs = dict(tokenizer(texts_of(prompts), return_tensors="pt", **padding))
    if not clip:
        del inputs["attention_mask"]
    processes = hf.AutoImageProcessor.from_pretrained(folder)
    pixels = [processes(rgb(file), return_tensors="pt")["pixel_values"] for file in files]
    return torch.cat([model(pixel_values=p, **inputs).logits_per_image for p in pixels])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_hugging_face_from_file_to_logits(kind: str, files: list[Path], tmp_path: Path) -> None:
    write_hf(tmp_path / "model", kind)
    net = va.load_model({"name": "huggingface", "weights": str(tmp_path / "model"), "prompts": ONE})
    near(net.predict(files), hf_logits(tmp_path / "model", files, ONE))
    assert net.classes == tuple(ONE)


def transform_of(config: dict[str, Any], preprocess: dict[str, Any]) -> Any:
    return image_transform_v2(PreprocessCfg(size=config["vision_cfg"]["image_size"], **preprocess), is_train=False)


@torch.inference_mode()
def open_clip_logits(
    model: Any, transform: Any, files: list[Path], prompts: dict[str, list[str]], length: int
) -> torch.Tensor:
    tokens = open_clip.SimpleTokenizer(context_length=length)(texts_of(prompts))
    return torch.cat([model.get_logits(transform(rgb(file))[None], tokens)[0] for file in files])


@pytest.mark.parametrize("config", OPEN_CLIP.values(), ids=OPEN_CLIP)
@pytest.mark.parametrize(
    "preprocess",
    [{}, {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}],
    ids=["default", "squashed"],
)
def test_open_clip_from_file_to_logits(
    config: dict[str, Any], preprocess: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    model = write_open_clip(tmp_path / "model", config, preprocess)
    net = va.load_model({"name": "open_clip/own", "weights": str(tmp_path / "model"), "prompts": ONE})
    length = config["text_cfg"]["context_length"]
    near(net.predict(files), open_clip_logits(model, transform_of(config, preprocess), files, ONE, length))
    assert net.preprocessing.library.startswith("open_clip")
    assert net.preprocessing.source == ("weights" if preprocess else "library default")


def test_open_clip_vit_b_32_by_name(files: list[Path], tmp_path: Path) -> None:
    config = open_clip.get_model_config("ViT-B-32")
    model = make_open_clip(config)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "own.safetensors")
    found = va.inspect_checkpoint(tmp_path / "own.safetensors")
    net = va.load_model({**yaml.safe_load(found.card)["model"], "prompts": ONE})
    assert net.spec.name == "open_clip/ViT-B-32"
    near(net.predict(files), open_clip_logits(model, transform_of(config, {}), files, ONE, 77))


def test_several_texts_are_averaged_as_directions(files: list[Path], tmp_path: Path) -> None:
    config = OPEN_CLIP["own tower"]
    model = write_open_clip(tmp_path / "model", config)
    net = va.load_model({"name": "open_clip/own", "weights": str(tmp_path / "model"), "prompts": SEVERAL})
    transform, scale = transform_of(config, {}), model.logit_scale.exp()
    with torch.inference_mode():
        each = model.encode_text(open_clip.SimpleTokenizer()(texts_of(SEVERAL)), normalize=True).reshape(3, 2, -1)
        mean = torch.nn.functional.normalize(each.mean(1), dim=-1)
        seen = torch.cat([model.encode_image(transform(rgb(file))[None], normalize=True) for file in files])
        near(net.predict(files), scale * seen @ mean.T)


def test_identities_hold(tmp_path: Path) -> None:
    write_hf(tmp_path / "clip", "clip")
    write_hf(tmp_path / "siglip", "siglip")
    write_open_clip(tmp_path / "open", OPEN_CLIP["own tower"])
    rng = np.random.default_rng(0)
    for name, folder in (("huggingface", "clip"), ("huggingface", "siglip"), ("open_clip/own", "open")):
        net = va.load_model({"name": name, "weights": str(tmp_path / folder), "prompts": SEVERAL})
        model = net.module
        images = torch.from_numpy(rng.normal(size=(4, 3, 32, 32)).astype(np.float32))
        results = run_identities(Subject(model, images[:2], images[2:]))
        assert results
        assert all(r.passed for r in results), [r for r in results if not r.passed]


def test_texts_are_embedded_once(tmp_path: Path, cache: Path) -> None:
    write_open_clip(tmp_path / "model", OPEN_CLIP["own tower"])
    spec = {"name": "open_clip/own", "weights": str(tmp_path / "model"), "prompts": ONE}
    va.load_model(spec)
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("texts-*")}
    va.load_model(spec)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("texts-*")} == kept
    va.load_model({**spec, "prompts": SEVERAL})
    assert (len(kept), len(list(cache.glob("texts-*")))) == (1, 2)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "vit_tiny_patch16_224", "prompts": ONE}, "reads no text"),
        ({"name": "open_clip/own", "prompts": {"happy": ["joy"]}}, "prompts"),
        ({"name": "open_clip/own", "prompts": {"happy": [], "sad": ["tears"]}}, "prompts.happy"),
        ({"name": "open_clip/own", "prompts": ONE, "classes": ["sad", "happy", "calm"]}, "leave model.classes out"),
        ({"name": "open_clip/own", "classes": ["sad", "happy", "calm"]}, "no classifier of their own"),
    ],
)
def test_cards_that_disagree_with_themselves(model: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        va.load_model({"weights": "nowhere", **model})


def test_a_classifier_has_no_texts(tmp_path: Path) -> None:
    config = hf.CLIPConfig(vision_config={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4})
    hf.CLIPForImageClassification(config).save_pretrained(tmp_path)
    hf.CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no text tower"):
        va.load_model({"name": "huggingface", "weights": str(tmp_path), "prompts": ONE})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": [1, 1, 1, 1]}, "a ResNet"),
        ({"attentional_pool": True}, "attentional_pool"),
        ({"timm_model_name": "resnet18"}, "resnet18"),
    ],
)
def test_towers_that_cannot_be_converted(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_open_clip(tmp_path, OPEN_CLIP["own tower"])
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"] |= changed
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        va.load_model({"name": "open_clip/own", "weights": str(tmp_path), "prompts": ONE})


def test_siglip_is_a_sigmoid_each_and_called_the_best(tmp_path: Path) -> None:
    write_hf(tmp_path / "siglip", "siglip")
    write_hf(tmp_path / "clip", "clip")
    found = {}
    for kind in ("siglip", "clip"):
        model = va.load_model({"name": "huggingface", "weights": str(tmp_path / kind), "prompts": ONE}).module
        found[kind] = (model.readout.output, model.readout.decision)
    assert found == {"siglip": ("sigmoid", "argmax"), "clip": ("softmax", "argmax")}


def test_inspect_prints_a_card_that_works(tmp_path: Path) -> None:
    write_hf(tmp_path / "clip", "clip")
    write_hf(tmp_path / "siglip", "siglip")
    write_open_clip(tmp_path / "open", OPEN_CLIP["own tower"], {"mean": [0.5] * 3})
    for name in ("clip", "siglip", "open"):
        found = va.inspect_checkpoint(tmp_path / name)
        section = yaml.safe_load(found.card)["model"]
        assert va.load_model(section).classes == ("class 0", "class 1")
    assert found.preprocessing is not None
    assert found.preprocessing.settings == {"mean": [0.5] * 3}


@pytest.mark.parametrize(
    ("config", "missing"), [("open_clip_config.json", "model_cfg"), ("text_projection", "text tower lacks")]
)
def test_what_is_missing_is_named(config: str, missing: str, tmp_path: Path) -> None:
    model = write_open_clip(tmp_path, OPEN_CLIP["own tower"])
    if config.endswith(".json"):
        (tmp_path / config).write_text("{}")
    else:
        state = {name: t.contiguous() for name, t in model.state_dict().items() if name != config}
        save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=missing):
        va.load_model({"name": "open_clip/own", "weights": str(tmp_path), "prompts": ONE})


def test_a_name_that_open_clip_does_not_know(tmp_path: Path) -> None:
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"did you mean .*open_clip/ViT-B-32"):
        va.load_model({"name": "open_clip/ViT-B32", "weights": str(tmp_path / "w.safetensors"), "prompts": ONE})


def test_why_single_texts_were_not_tried_is_said() -> None:
    audit = examples()["disparity"]
    for reason, said in ((WhyNoSensitivity.ONE_TEXT, "one text"), (WhyNoSensitivity.UNEQUAL, "different numbers")):
        left_out = PromptSensitivity(left_out=reason, gaps=[])
        assert said in Sentences(audit.model_copy(update={"prompt_sensitivity": left_out})).no_sensitivity()
    assert Sentences(audit).no_sensitivity() == ""


@pytest.mark.parametrize(
    ("name", "library", "extra"), [("open_clip/own", "open_clip", "clip"), ("huggingface", "transformers", "hf")]
)
def test_without_the_library_its_extra_is_named(
    name: str, library: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "huggingface":
        write_hf(tmp_path / "model", "clip")
    else:
        write_open_clip(tmp_path / "model", OPEN_CLIP["own tower"])
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}, which is not installed; pip install 'vit-audit\[{extra}\]'"):
        va.load_model({"name": name, "weights": str(tmp_path / "model"), "prompts": ONE})
