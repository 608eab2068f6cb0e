"""A whole audit of a zero-shot model: a small CLIP that has learned rendered faces, with a cue planted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from audit.card.load import built_in_cards, load_card
from audit.data.synthetic import SyntheticSource, sample_faces
from tests.data.published_sets import FACET_CLASSES, facet
from tests.end_to_end.conftest import Invoke, write_card
from tests.models.small_towers import OPEN_CLIP, write_hf, write_open_clip
from tests.small_world import without_pdf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

pytestmark = pytest.mark.end_to_end
PROMPTS = {"neutral": ["a calm face", "no emotion", "neutral"], "smiling": ["a happy face", "joy", "smiling"]}
SIDE, EPOCHS, FACES = 64, 12, 600


TOWER = OPEN_CLIP["own tower"]
OPEN = TOWER | {
    "vision_cfg": TOWER["vision_cfg"] | {"image_size": SIDE, "patch_size": 16, "width": 64, "head_width": 16}
}
EVERY = [text for texts in PROMPTS.values() for text in texts]
Tower = tuple[
    Any, Any, list[nn.Parameter], Callable[[Image.Image], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]
]


def hf_tower(folder: Path) -> Tower:
    """Write a random CLIP; return it, its texts' embeddings, what is trained, and from image to embedding."""
    model = write_hf(folder, "clip", side=SIDE, patch=16, width=64)
    tokens = hf.AutoTokenizer.from_pretrained(folder)(EVERY, padding=True, return_tensors="pt")
    processes = hf.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        answer = model.get_text_features(**tokens)
    return (
        model,
        getattr(answer, "pooler_output", answer),
        [*model.vision_model.parameters(), *model.visual_projection.parameters()],
        lambda image: processes(image, return_tensors="pt")["pixel_values"][0],
        lambda pixels: model.visual_projection(model.vision_model(pixels).pooler_output),
    )


def open_tower(folder: Path) -> Tower:
    """Do the same with open_clip."""
    model = write_open_clip(folder, OPEN)
    with torch.no_grad():
        texts = model.encode_text(open_clip.SimpleTokenizer()(EVERY))
    transform = image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)
    return model, texts, list(model.visual.parameters()), transform, model.visual


def write_clip(folder: Path, name: str, *, association: float) -> None:
    """Write a CLIP whose image tower has learned to tell two expressions of rendered faces."""
    model, embedded, own, transform, tower = (hf_tower if name == "huggingface" else open_tower)(folder)
    drawn = sample_faces(FACES, 5, association=association, split="train")
    source = SyntheticSource(drawn)
    pixels = torch.stack([transform(source.open(key)) for key in drawn["image"].tolist()])
    targets = torch.tensor((drawn["expression"] == "smiling").to_numpy().astype(int))
    each = F.normalize(embedded, dim=-1).reshape(len(PROMPTS), 3, -1)
    texts = F.normalize(each.mean(1), dim=-1)
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    torch.manual_seed(0)
    for weight in own:  # drawn at random they are too loud to learn from
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.05)
    optimiser = torch.optim.AdamW(own, lr=1e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(FACES).split(50):
            seen = F.normalize(tower(pixels[rows]), dim=-1)
            loss = F.cross_entropy(model.logit_scale.exp().detach() * seen @ texts.T, targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    if name == "huggingface":
        model.save_pretrained(folder)
    else:
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")


@pytest.fixture(scope="module", params=[pytest.param("huggingface", marks=pytest.mark.long), "open_clip/own"])
def audited(invoke: Invoke, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Audit such a model as it is; return the folder of the card."""
    place = tmp_path_factory.mktemp("clip")
    write_clip(place / "clip", request.param, association=0.8)
    card = write_card(
        place / "card.yaml",
        training="none",
        controls={"eval_images": 240},
        data={"reader": "synthetic", "rendered": {"train_images": 8, "audit_images": 240}},
    )
    text = card.read_text()
    content = json.dumps({"name": request.param, "weights": "clip", "prompts": PROMPTS})
    start, end = text.index("model:"), text.index("training:")
    card.write_text(text[:start] + f"model: {content}\n" + text[end:])
    with without_pdf():
        result = invoke("run", card, "--out", place / "out")
    assert result.exit_code in (0, 1), result.output
    return place


@pytest.mark.parametrize("name", ["huggingface", "open_clip/ViT-L-14"])
def test_the_card_of_facet_reads_its_layout(invoke: Invoke, tmp_path: Path, name: str) -> None:
    """The built-in card, its texts and a small CLIP, on a set that is laid out as FACET is."""
    facet(tmp_path)
    card, weights = built_in_cards()["facet-clip"], "clip-vit-large-patch14"
    if name == "huggingface":
        write_hf(tmp_path / weights, "clip")
    else:
        write_open_clip(tmp_path / weights, OPEN_CLIP["own tower"])
        (tmp_path / "card.yaml").write_text(card.read_text().replace("name: huggingface", f"name: {name}"))
        card = tmp_path / "card.yaml"
    result = invoke("check", card, "--data", tmp_path)
    assert result.exit_code == 0, result.output
    assert "288 images of 144 subjects" in result.output
    assert "one of 52 classes" in result.output
    assert {text.replace("_", " ") for text in FACET_CLASSES} == set(load_card(card).model.classes or ())


def record_of(place: Path) -> tuple[Path, dict[str, Any]]:
    (folder,) = (place / "out").iterdir()
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return folder, record


def test_check_reads_the_card(invoke: Invoke, audited: Path) -> None:
    result = invoke("check", audited / "card.yaml")
    assert result.exit_code == 0, result.output


def test_the_audit_is_valid_and_finds_the_gap(audited: Path) -> None:
    _, record = record_of(audited)
    assert record["controls"]["valid"]
    assert record["model"]["prompts"] == PROMPTS
    assert record["model"]["classes"] == ["neutral", "smiling"]
    assert record["outcome"] == "DISPARITY FOUND"


def test_prompts_are_fixed_before_anything_is_measured(audited: Path) -> None:
    folder, _ = record_of(audited)
    registered = json.loads((folder / "preregistration.json").read_text())
    assert registered["card"]["model"]["prompts"] == PROMPTS


def test_each_text_alone_gives_a_gap(audited: Path) -> None:
    """The gap of a text is that of plain masks on what the text alone answers."""
    folder, record = record_of(audited)
    (gap,) = record["prompt_sensitivity"]["gaps"]
    assert record["prompt_sensitivity"]["left_out"] is None
    table = pd.read_parquet(folder / "effects" / "texts.parquet").set_index("recipient")
    samples = pd.read_parquet(folder / "effects" / "samples.parquet")
    values = []
    for number, part in table.groupby("text"):
        seen = samples.join(part, how="inner")
        weights = seen["label"].value_counts(normalize=True)
        rates = {
            group: sum(
                weights[label] * (own.loc[own["label"] == label, "predicted"] == "smiling").mean()
                for label in weights.index
            )
            for group, own in seen.groupby("skin_tone")
        }
        values.append(rates[gap["group"]] - rates[gap["reference"]])
        assert gap["alone"][int(number)]["value"] == pytest.approx(values[-1])
    assert len(values) == 3
    assert gap["spread"] == pytest.approx(max(values) - min(values))


def test_the_report_says_so_and_every_figure_can_be_derived_again(invoke: Invoke, audited: Path) -> None:
    folder, record = record_of(audited)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Gap with each text alone" in page
    assert "“a happy face”" in page
    result = invoke("verify", folder)
    assert result.exit_code == 0, result.output
    for finding in record["findings"][:2]:
        found = invoke("reproduce", folder, finding["id"])
        assert found.exit_code == 0, found.output
