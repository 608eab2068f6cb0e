"""A whole audit of a plain network that reads gray images: its stages are named, and colour cannot be asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vit_audit as va
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.records import NotRunCode
from tests.small_world import SMALL_CARD

pytestmark = pytest.mark.end_to_end


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


@pytest.mark.usefixtures("no_pdf")
def test_a_network_of_gray_images_is_audited(tmp_path: Path) -> None:
    table = sample_faces(120, 5, split="discovery")
    source = SyntheticSource(table)
    for key in table["image"]:
        source.open(key).save(tmp_path / f"{key}.png")
    frame = table.assign(path=[f"{key}.png" for key in table["image"]])[["path", "expression", "skin_tone"]]
    module = trained(network())
    net = va.wrap(
        module, ["neutral", "smiling"], stages=["0", "1", "2"], mean=[0.5], std=[0.5], image_size=48, channels=1
    )
    settings = {
        "name": "Gray",
        "controls": SMALL_CARD["controls"],
        "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200, "min_group_size": 10},
    }
    data = va.Data.from_frame(
        frame, images="path", label="expression", groups={"skin_tone": "skin_tone"}, root=tmp_path
    )
    result = va.audit(va.plan(settings, net, data), out=tmp_path / "run")
    record = result.record
    assert record.model.unit == "slice"
    assert record.model.layers == 3
    assert record.data.images == 120
    failed = [c.id for c in record.controls.controls if c.kind == "identity" and not c.passed]
    assert failed == []
    assert next(c for c in record.controls.controls if c.kind == "model").passed  # it knows its labels
    left_out = [n.design for n in record.controls.not_run if n.code == NotRunCode.NOT_APPLICABLE]
    assert left_out == ["colour"]
    tried = {c.channel for c in record.controls.controls if c.channel is not None}
    assert tried == {"blur"}
    page_1 = (tmp_path / "run" / "report.html").read_text(encoding="utf-8").partition('id="summary"')[2]
    page_1 = " ".join(page_1.partition("</section>")[0].split())
    assert "The colour controls: the model reads gray images, so there is no colour to take away." in page_1
    assert "They neither pass nor fail; those of fine detail are run." in page_1
    assert va.open_run(tmp_path / "run").verify().holds
