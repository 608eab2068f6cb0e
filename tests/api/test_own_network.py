"""A whole audit of a plain network that reads gray images: its stages are named, and colour cannot be asked."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms

import vit_audit as va
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.records import NotRunCode
from tests.small_world import SMALL_CARD, without_pdf

pytestmark = pytest.mark.end_to_end
SHARED = Path(__file__).parents[3] / "shared"


def network() -> nn.Sequential:
    """Return convolutions in a row, of one channel, without residuals."""
    torch.manual_seed(3)
    stages = [
        nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3, 2), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in ((1, 16), (16, 32), (32, 64))
    ]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 2)).eval()


def trained(net: nn.Sequential) -> nn.Sequential:
    """Teach a network to tell smiles, on faces of its own: a second or two."""
    table = sample_faces(240, 6, split="train")
    source = SyntheticSource(table)
    faces = np.stack([np.asarray(source.open(key).convert("L").resize((48, 48))) for key in table["image"]])
    images = torch.from_numpy(faces).float()[:, None] / 127.5 - 1
    labels = torch.from_numpy((table["expression"] == "smiling").to_numpy().astype(int))
    step = torch.optim.AdamW(net.train().parameters(), 3e-3)
    for _ in range(60):
        some = torch.randperm(len(labels))[:120]
        step.zero_grad()
        nn.functional.cross_entropy(net(images[some]), labels[some]).backward()
        step.step()
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gray")


@pytest.fixture(scope="module")
def result(folder: Path) -> va.Result:
    table = sample_faces(120, 5, split="discovery")
    source = SyntheticSource(table)
    for key in table["image"]:
        source.open(key).save(folder / f"{key}.png")
    frame = table.assign(path=[f"{key}.png" for key in table["image"]])[["path", "expression", "skin_tone"]]
    frame["hat"] = ["no", "yes", "yes"] * 40
    module = trained(network())
    net = va.wrap(
        module, ["neutral", "smiling"], stages=["0", "1", "2"], mean=[0.5], std=[0.5], image_size=48, channels=1
    )
    settings = {
        "name": "Gray",
        "controls": SMALL_CARD["controls"],
        "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200, "min_group_size": 10},
    }
    hat = {"column": "hat", "values": ["no", "yes", "unsure"], "reference": "unsure"}
    groups = {"skin_tone": "skin_tone", "hat": hat}
    data = va.Data.from_frame(frame, images="path", label="expression", groups=groups, root=folder)
    with without_pdf():
        return va.audit(va.plan(settings, net, data), out=folder / "run")


def not_applicable(result: va.Result) -> list[str]:
    return [n.design for n in result.record.controls.not_run if n.code == NotRunCode.NOT_APPLICABLE]


@pytest.mark.usefixtures("no_pdf")
def test_a_network_of_gray_images_is_audited(result: va.Result, folder: Path) -> None:
    record = result.record
    assert record.model.unit == "slice"
    assert record.model.layers == 3
    assert record.data.images == 120
    failed = [c.id for c in record.controls.controls if c.kind == "identity" and not c.passed]
    assert failed == []
    assert next(c for c in record.controls.controls if c.kind == "model").passed  # it knows its labels
    assert not_applicable(result) == ["colour"]
    tried = {c.channel for c in record.controls.controls if c.channel is not None}
    assert tried == {"blur"}
    page_1 = (folder / "run" / "report.html").read_text(encoding="utf-8").partition('id="summary"')[2]
    page_1 = " ".join(re.sub("</?a[^>]*>", "", page_1.partition("</section>")[0]).split())
    assert "The colour controls: the model reads gray images, so there is no colour to take away." in page_1
    assert "They neither pass nor fail; those of fine detail are run." in page_1
    assert va.open_run(folder / "run").verify().holds


def test_an_attribute_whose_reference_is_empty_leaves_the_other_to_be_patched(result: va.Result) -> None:
    record = result.record
    assert {(row.group, row.images > 0) for row in record.rates if row.attribute == "hat"} == {
        ("no", True), ("yes", True), ("unsure", False),
    }  # fmt: skip
    assert {row.state for row in record.contrasts if row.attribute == "hat"} == {"not estimable"}
    assert "not estimable" not in {row.state for row in record.contrasts if row.attribute == "skin_tone"}
    assert {row.contrast.partition(":")[0] for row in record.heads} == {"skin_tone"}


def published() -> nn.Sequential:
    """Return a classifier that its maker has published, with its own weights and its seven sigmoids."""
    sizes = ((1, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2))
    stages = {
        f"conv_{i}": nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3, s), nn.BatchNorm2d(b), nn.ReLU())
        for i, (a, b, s) in enumerate(sizes, start=1)
    }
    head = nn.Sequential(nn.Linear(9216, 256), nn.ReLU(), nn.Linear(256, 7))
    module = nn.Sequential(OrderedDict([*stages.items(), ("flatten", nn.Flatten()), ("linear", head)]))
    module.load_state_dict(load_file(SHARED / "weights" / "fer2013_cnn.safetensors"))
    return module.eval()


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no published classifier and photographs beside the checkout")
def test_a_published_classifier_is_audited_on_photographs(tmp_path: Path) -> None:
    faces = pd.read_csv(SHARED / "data" / "expressions" / "faces.csv", dtype=str)
    faces = faces[faces["expression"].isin(["happiness", "neutral"]) & faces["gender"].isin(["female", "male"])]
    faces = faces.groupby(["expression", "gender"]).head(40)
    seen = transforms.Compose([transforms.Resize((48, 48)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    classes = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
    net = va.wrap(
        published(), classes, stages=[f"conv_{i}" for i in range(1, 5)], mean=[0.5], std=[0.5], image_size=48,
        channels=1, preprocess=va.Preprocess(seen), output="sigmoid", decision="argmax",
    )  # fmt: skip
    root = SHARED / "data" / "expressions"
    data = va.Data.from_frame(
        faces, images="image", label="expression", groups={"gender": "gender"}, subject="person", root=root
    )
    audited = {"outcomes": ["happiness"], "permutations": 200, "bootstrap": 200, "min_group_size": 10}
    settings = {"name": "Published", "controls": SMALL_CARD["controls"], "audit": audited}
    result = va.audit(va.plan(settings, net, data), out=tmp_path / "run", report=False)
    record = result.record
    assert record.outcome in ("DISPARITY FOUND", "PASSED", "INCONCLUSIVE"), record.reasons
    assert [c.id for c in record.controls.controls if c.kind == "identity" and not c.passed] == []
    assert not_applicable(result) == ["colour"]
    assert (record.model.unit, record.model.layers) == ("slice", 4)
    called = net.predict([root / name for name in faces["image"]]).argmax(axis=1) == classes.index("happiness")
    for row in record.rates:
        assert row.selection_rate.value == pytest.approx(called[faces["gender"] == row.group].mean())
