"""From file to logits: what the audit computes is what the library's own code computes."""

from __future__ import annotations

import functools
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from PIL import Image, ImageOps
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision import transforms as tv
from torchvision.models import ResNet50_Weights, ViT_B_16_Weights, resnet50, vit_b_16

import vit_audit as va
from audit.card.schema import ModelSpec
from audit.errors import ModelError
from audit.models.build import Backbone
from audit.models.preprocessing import preprocessing_of
from audit.models.undrawn import Undrawn
from tests.models.awkward_images import write_awkward_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.unit
Transform = Callable[[Image.Image], torch.Tensor]
CLASSES = ["calm", "glad", "sad"]
TOLERANCE = 1e-5  # of a logit, or of the logits' standard deviation where that is above 1
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
MLP, DINO = SHAPE | {"intermediate_size": 64}, SHAPE | {"mlp_ratio": 2}
THREE = {"num_labels": 3, "id2label": dict(enumerate(CLASSES)), "label2id": {n: i for i, n in enumerate(CLASSES)}}
MEAN_STD = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
BYTES = {"image_mean": [120.0] * 3, "image_std": [60.0] * 3}
SIDE = {"height": 32, "width": 32}
HUGGING_FACE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "vit, squashed": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**MLP, **THREE)),
        lambda: hf.ViTImageProcessor(size=SIDE, **MEAN_STD),
    ),
    "vit, lanczos, not rescaled": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**MLP, **THREE)),
        lambda: hf.ViTImageProcessor(
            size=SIDE, resample=1, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3
        ),
    ),
    "dinov2, cut": (
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO, **THREE)),
        lambda: hf.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SIDE, resample=3, **MEAN_STD),
    ),
    "clip": (
        lambda: hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=MLP, **THREE)),
        lambda: hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE),
    ),
    "siglip": (
        lambda: hf.SiglipForImageClassification(hf.SiglipConfig(vision_config=MLP, **THREE)),
        lambda: hf.SiglipImageProcessor(size=SIDE, resample=3),
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_awkward_images(tmp_path_factory.mktemp("awkward"))


def drawn(model: nn.Module) -> Any:
    """Draw every parameter and statistic at random: fresh initialisations hide errors."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if not weight.is_floating_point():
                continue
            around = 1.0 if weight.ndim == 1 and not name.endswith("bias") else 0.0
            scale = 0.2 if weight.ndim < 2 else weight[0].numel() ** -0.5
            weight.copy_((around + scale * torch.randn(weight.shape, generator=generator)).abs_() if around else
                         scale * torch.randn(weight.shape, generator=generator))  # fmt: skip
    return model.eval()


def rgb(file: Path) -> Image.Image:
    """Open a file as these libraries' users do."""
    with Image.open(file) as opened:
        return opened.convert("RGB")


def near(found: npt.NDArray[np.float32], wanted: torch.Tensor) -> None:
    expected = wanted.numpy()
    tolerance = TOLERANCE * max(1.0, float(expected.std()))
    assert expected.std() > 1e-2, "logits that hardly differ prove nothing"
    assert np.abs(found - expected).max() <= tolerance


@torch.inference_mode()
def library_logits(
    model: nn.Module, transform: Callable[[Image.Image], torch.Tensor], files: Sequence[Path]
) -> torch.Tensor:
    answers = [model(transform(rgb(file))[None]) for file in files]
    return torch.cat([getattr(a, "logits", a) for a in answers])


TIMM: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit, crop 0.9": ("vit_tiny_patch16_224", {}, {}),
    "deit3, crop 1.0": ("deit3_small_patch16_224.fb_in22k_ft_in1k", {"depth": 2}, {}),
    "convnext": ("convnext_atto", {}, {}),
    "convnext at its test size": ("convnext_atto", {}, {"preprocess": "test"}),
    "vit at another size": ("vit_tiny_patch16_224", {"depth": 2}, {"image_size": 96}),
}


@pytest.mark.parametrize(("name", "overrides", "options"), TIMM.values(), ids=TIMM)
def test_timm_from_file_to_logits(
    name: str, overrides: dict[str, Any], options: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    size = {"img_size": options["image_size"]} if "image_size" in options else {}
    model = drawn(timm.create_model(name, num_classes=3, **overrides, **size))
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    net = va.load_model(
        {
            "name": name,
            "weights": str(tmp_path / "own.safetensors"),
            "classes": CLASSES,
            "overrides": overrides,
            **options,
        }
    )
    args = {"input_size": (3, 96, 96)} if size else {}
    config = resolve_data_config(args, model=model, use_test_size="preprocess" in options)
    near(net.predict(files), library_logits(model, create_transform(**config, is_training=False), files))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224.fb_in1k"])
def test_timm_squashes_where_its_configuration_says_so(name: str, files: list[Path]) -> None:
    overlay = {"crop_mode": "squash", "crop_pct": 1.0}
    model = drawn(timm.create_model(name, depth=2, num_classes=3, pretrained_cfg_overlay=overlay))
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    near(va.wrap(model, CLASSES).predict(files), library_logits(model, transform, files))


TORCHVISION = {"vit_b_16": (vit_b_16, ViT_B_16_Weights), "resnet50": (resnet50, ResNet50_Weights)}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_from_file_to_logits(name: str, files: list[Path], tmp_path: Path) -> None:
    make, published = TORCHVISION[name]
    with Undrawn():
        made = make(num_classes=3)
    model = drawn(made)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    net = va.load_model(
        {"name": f"torchvision/{name}", "weights": str(tmp_path / "own.safetensors"), "classes": CLASSES}
    )
    near(net.predict(files), library_logits(model, published.DEFAULT.transforms(), files))


@pytest.mark.parametrize(("name", "entry"), [("resnet50", "IMAGENET1K_V1"), ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1")])
def test_a_card_names_the_transforms_of_an_older_entry_of_torchvisions(
    name: str, entry: str, files: list[Path]
) -> None:
    published = TORCHVISION[name][1]
    spec = ModelSpec(name=f"torchvision/{name}", weights="none", preprocess=entry)
    made = preprocessing_of(spec, Backbone(spec, None).build(3))
    assert (made.info.source, f"({published[entry]})" in made.info.library) == ("card", True)
    transform, newest = published[entry].transforms(), published.DEFAULT.transforms()
    images = [rgb(file) for file in files]
    for image in images:
        shares = torch.from_numpy(made.geometry.fit(image)).permute(2, 0, 1) / 255
        seen = (shares - torch.tensor(made.mean)[:, None, None]) / torch.tensor(made.std)[:, None, None]
        torch.testing.assert_close(seen, transform(image), rtol=0, atol=1e-6)
    assert any(not torch.equal(transform(i), newest(i)) for i in images)


def test_an_entry_that_torchvision_does_not_have_is_one_line_with_those_that_it_has() -> None:
    spec = ModelSpec(name="torchvision/resnet50", weights="none", preprocess="IMAGENET1K_V9")
    what = "model.preprocess: ResNet50_Weights has no entry 'IMAGENET1K_V9'; it has IMAGENET1K_V1, IMAGENET1K_V2"
    with pytest.raises(ModelError, match=f"^{re.escape(what)}$"):
        preprocessing_of(spec, Backbone(spec, None).build(3))
    with pytest.raises(
        ValidationError, match=r"is an entry of torchvision's weights, and the model 'vit_tiny_patch16_224'"
    ):
        ModelSpec(name="vit_tiny_patch16_224", preprocess="IMAGENET1K_V1")


@pytest.mark.parametrize(("make", "processor"), HUGGING_FACE.values(), ids=HUGGING_FACE)
def test_hugging_face_from_file_to_logits(
    make: Callable[[], Any], processor: Callable[[], Any], files: list[Path], tmp_path: Path
) -> None:
    model, made = drawn(make()), processor()
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    net = va.load_model({"name": "huggingface", "weights": str(tmp_path)})
    processes = hf.AutoImageProcessor.from_pretrained(tmp_path)
    wanted = library_logits(model, lambda image: processes(image, return_tensors="pt")["pixel_values"][0], files)
    near(net.predict(files), wanted)
    assert type(made).__name__.removesuffix("Fast") in net.preprocessing.library
    assert net.preprocessing.source == "weights"
    (how,) = [step for step in net.preprocessing.steps if step.startswith("resample")]
    assert how in ("resample=bilinear", "resample=lanczos", "resample=bicubic")  # not Pillow's number


def test_the_processor_says_the_size_where_the_configuration_differs(tmp_path: Path) -> None:
    drawn(hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO | {"image_size": 64}, **THREE))).save_pretrained(
        tmp_path
    )
    hf.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SIDE, **MEAN_STD).save_pretrained(tmp_path)
    assert va.load_model({"name": "huggingface", "weights": str(tmp_path)}).preprocessing.input_size == [3, 32, 32]


@pytest.mark.parametrize(
    ("stated", "transform"),
    [
        ({"resize": 40}, [tv.Resize(40, interpolation=tv.InterpolationMode.BICUBIC), tv.CenterCrop(32)]),
        ({"mode": "squash", "interpolation": "bilinear"}, [tv.Resize((32, 32))]),
        ({"resize": 40, "interpolation": "nearest"}, [tv.Resize(40, tv.InterpolationMode.NEAREST), tv.CenterCrop(32)]),
    ],
)
def test_the_card_states_another(stated: dict[str, Any], transform: list[Any], files: list[Path]) -> None:
    model = drawn(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3))
    whole = tv.Compose([*transform, tv.ToTensor(), tv.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])
    net = va.wrap(model, CLASSES, preprocess={**stated, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]})
    near(net.predict(files), library_logits(model, whole, files))
    assert net.preprocessing.source == "card"


def halved(image: Image.Image) -> torch.Tensor:
    """Return an image without its upper half, as shares that no byte stands for."""
    low = image.crop((0, image.height // 2, image.width, image.height)).resize((32, 32))
    return torch.from_numpy(np.asarray(low) / 127.5 - 1).permute(2, 0, 1).float().pow(3)


def test_a_function_of_the_users_own(files: list[Path]) -> None:
    model = drawn(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3))
    net = va.wrap(model, CLASSES, preprocess=va.Preprocess(halved))
    near(net.predict(files), library_logits(model, halved, files))
    assert net.preprocessing.source == "callable"
    assert net.preprocessing.sha256 is not None
    compose = tv.Compose([tv.Resize((32, 32)), tv.ToTensor(), tv.Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])])
    other = va.wrap(model, CLASSES, preprocess=va.Preprocess(compose))
    near(other.predict(files), library_logits(model, compose, files))
    assert other.preprocessing.mean == pytest.approx([0.1, 0.2, 0.3])
    assert other.preprocessing.sha256 != net.preprocessing.sha256


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda _image: 3, "gives a int"),
        (lambda _image: torch.zeros(3, 8, 8), "gives 8 x 8 pixels, 3 channels; the model takes 32 x 32 pixels"),
        (lambda image: image.nothing, "fails on a blank image"),
    ],
)
def test_a_function_that_gives_something_else_is_refused(fn: Any, said: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    with pytest.raises(va.ModelError, match=said):
        va.wrap(model, CLASSES, preprocess=va.Preprocess(fn))


def test_legacy_is_a_centred_square() -> None:
    model = drawn(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8))
    square = ImageOps.fit(picture, (32, 32), Image.Resampling.BICUBIC)
    net = va.wrap(model, CLASSES, preprocess="legacy")
    np.testing.assert_array_equal(net.predict([picture]), net.predict([square]))
    assert json.loads(net.preprocessing.model_dump_json())["source"] == "legacy"


@pytest.mark.skipif(
    not hasattr(hf, "ViTImageProcessorPil"), reason="this transformers has no processor of each backend"
)
def test_the_backends_of_a_hugging_face_processor_differ_by_one_grey_level_at_most(files: list[Path]) -> None:
    options: dict[str, Any] = {"size": SIDE, "do_rescale": False, "do_normalize": False}
    made = [kind(**options) for kind in (hf.ViTImageProcessor, hf.ViTImageProcessorPil)]
    opened = []
    for file in files:
        with Image.open(file) as image:
            opened.append(image.convert("RGB"))
    seen = [[np.asarray(p(images=i, return_tensors="np")["pixel_values"][0], float) for i in opened] for p in made]
    differences = [float(np.abs(a - b).max()) for a, b in zip(*seen, strict=True)]
    assert 0 < max(differences) <= 1


def shifted(image: Image.Image, by: int = 0) -> torch.Tensor:
    """Return an image, squashed, with ``by`` added."""
    return halved(image) + by


def shifting(by: int) -> Callable[[Image.Image], torch.Tensor]:
    def inside(image: Image.Image) -> torch.Tensor:
        return shifted(image, by)

    return inside


class Shift:
    """Adds what it is made with, and does not say so."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return shifted(image, self.by)


class ShiftModule(nn.Module):
    """Likewise; torch's own ``repr`` of it names no setting."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, image: Image.Image) -> torch.Tensor:
        return shifted(image, self.by)


def ended(*steps: Any) -> tv.Compose:
    return tv.Compose([tv.Resize((32, 32)), *steps, tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)])


def mirrored(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image)


def flipped(image: Image.Image) -> Image.Image:
    return ImageOps.flip(image)


@pytest.mark.parametrize(
    "fn",
    [
        functools.partial(shifted, by=1),
        shifting(1),
        Shift(1),
        Shift(1).__call__,
        lambda image: shifted(image, 1),
        ended(tv.Lambda(mirrored)),
        ended(functools.partial(ImageOps.fit, size=(32, 32))),
    ],
    ids=["partial", "closure", "object", "method", "lambda", "Lambda in a Compose", "partial in a Compose"],
)
def test_a_function_that_nothing_tells_from_another_has_no_hash(fn: Any) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    seen = va.wrap(model, CLASSES, preprocess=va.Preprocess(fn)).preprocessing
    assert seen.sha256 is None
    assert seen.is_unnamed
    assert "0x" not in " ".join(seen.steps)


def test_what_a_function_does_is_in_its_hash(tmp_path: Path) -> None:
    made = [va.Preprocess(fn).digest for fn in (halved, shifted, ShiftModule(1), ShiftModule(2))]
    made += [va.Preprocess(ended(step)).digest for step in (mirrored, flipped, tv.CenterCrop(30), tv.CenterCrop(32))]
    assert None not in made
    assert len(set(made)) == len(made)
    assert va.Preprocess(ShiftModule(1)).digest == made[2]
    read = []
    for side in (24, 32):  # the same source, another constant of its module
        (tmp_path / f"own{side}.py").write_text(
            f"SIDE = {side}\n\n\ndef fit(image):\n    return image.resize((SIDE, 32))\n", encoding="utf-8"
        )
        sys.path.insert(0, str(tmp_path))
        read.append(va.Preprocess(__import__(f"own{side}").fit).digest)
        sys.path.remove(str(tmp_path))
    assert None not in read
    assert len(set(read)) == 2


def test_a_function_is_named_alike_in_every_process() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    assert va.wrap(model, CLASSES, preprocess=va.Preprocess(halved)).preprocessing.steps == ["halved"]
