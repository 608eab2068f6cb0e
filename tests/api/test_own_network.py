"""A whole audit of a plain network that reads gray images: its stages are named, and colour cannot be asked."""

from __future__ import annotations

from pathlib import Path

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


def test_a_network_of_gray_images_is_audited(tmp_path: Path) -> None:
    table = sample_faces(120, 5, split="discovery")
    source = SyntheticSource(table)
    for key in table["image"]:
        source.open(key).save(tmp_path / f"{key}.png")
    frame = table.assign(path=[f"{key}.png" for key in table["image"]])[["path", "expression", "skin_tone"]]
    net = va.wrap(
        network(), ["neutral", "smiling"], stages=["0", "1", "2"], mean=[0.5], std=[0.5], image_size=48, channels=1
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
    left_out = [n.design for n in record.controls.not_run if n.code == NotRunCode.NOT_APPLICABLE]
    tried = {c.channel for c in record.controls.controls}
    assert left_out in ([], ["colour"])
    assert "colour" not in tried
    if left_out:  # the model knew its labels, so the known effects were tried
        assert "blur" in tried
        assert "no colour to take away" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert va.open_run(tmp_path / "run").verify().holds
