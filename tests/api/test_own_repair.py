"""A user's own network is repaired from Python: taken as it is, audited, interrupted, and taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import vit_audit as va
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.models.checkpoint import hash_state
from audit.records.repair_methods import Method, WhyNotOffered
from audit.records.repair_run import RepairState
from audit.store import file_hash
from tests.small_world import SMALL_CARD, without_pdf

pytestmark = pytest.mark.end_to_end
SIDE = 48
METHODS = ["untouched", "continued", "global_threshold", "dfr", "oxonfair", "heads_to_reference"]


class Network(nn.Module):
    """Convolutions with code of their own between them, and one linear layer that gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.answer = nn.Linear(256, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        held = self.coarse(self.middle(1.5 * self.fine(images)))
        logits: torch.Tensor = self.answer(F.adaptive_avg_pool2d(held, 2).flatten(1))
        return logits


def trained() -> Network:
    """Teach a network to tell smiles, on faces of which those of lighter skin smile more often."""
    torch.manual_seed(3)
    net, table = Network(), sample_faces(400, 6, association=0.8, split="train")
    source = SyntheticSource(table)
    faces = np.stack([np.asarray(source.open(key).resize((SIDE, SIDE))) for key in table["image"]])
    images = torch.from_numpy(faces).float().permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.from_numpy((table["expression"] == "smiling").to_numpy().astype(int))
    step = torch.optim.AdamW(net.train().parameters(), 3e-3)
    for _ in range(80):
        some = torch.randperm(len(labels))[:128]
        step.zero_grad()
        F.cross_entropy(net(images[some]), labels[some]).backward()
        step.step()
    return net.eval()


@pytest.fixture(scope="module")
def module() -> Network:
    return trained()


@pytest.fixture(scope="module")
def net(module: Network) -> va.Net:
    return va.wrap(
        module,
        ["neutral", "smiling"],
        stages=["fine", "middle", "coarse"],
        mean=[0.5] * 3,
        std=[0.5] * 3,
        image_size=SIDE,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> va.Data:
    folder = tmp_path_factory.mktemp("faces")
    table = va.rendered_faces(folder, 960, seed=5)
    return va.Data.from_frame(
        table,
        images="path",
        label="expression",
        groups={"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
        root=folder,
        shares={"discovery": 0.15, "confirmation": 0.15, "repair": 0.3, "sealed": 0.4},
    )


@pytest.fixture(scope="module")
def result(net: va.Net, data: va.Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[va.Result]:
    settings = {
        "name": "Own network",
        "controls": SMALL_CARD["controls"],
        "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200},
        "repair": {"methods": METHODS, "gap_margin": 0.2, "accuracy_margin": 0.1, "error_margin": 0.1},
    }
    with without_pdf():
        yield va.audit(va.plan(settings, net, data), out=tmp_path_factory.mktemp("own") / "run")


@pytest.fixture(scope="module")
def repaired(
    result: va.Result, net: va.Net, data: va.Data, tmp_path_factory: pytest.TempPathFactory
) -> va.RepairResult:
    out = tmp_path_factory.mktemp("repaired") / "repair"
    return va.repair(result, out, net=net, data=data, reaudit=False, report=False)


def test_its_last_layer_is_repaired_and_said_why_the_rest_is_not(repaired: va.RepairResult) -> None:
    rows = {row.method: row for row in repaired.methods}
    assert list(rows) == [Method(name) for name in METHODS]
    assert rows[Method.CONTINUED].not_offered == WhyNotOffered.NO_TRAINING_IMAGES
    assert rows[Method.HEADS_TO_REFERENCE].not_offered is not None
    before = rows[Method.UNTOUCHED].ranked
    assert before is not None
    assert before.gap.value is not None
    assert abs(before.gap.value) > 0.1
    assert repaired.state in (RepairState.CERTIFIED, RepairState.NOT_SHOWN, RepairState.FAILED)
    best = rows[Method(str(repaired.record.recommended))].ranked
    assert best is not None
    assert best.gap.value is not None
    assert abs(best.gap.value) < abs(before.gap.value)


def test_methods_are_fitted_on_one_part_and_ranked_on_another(repaired: va.RepairResult, data: va.Data) -> None:
    plan = repaired.record.plan
    assert plan is not None
    assert plan.images["fit"] == pytest.approx(2 * plan.images["choose"], abs=2)
    assert plan.images["fit"] + plan.images["choose"] == pytest.approx(0.3 * len(data.table), abs=2)
    for row in repaired.methods:
        if row.ranked is not None:
            assert row.ranked.images == plan.images["choose"]
    rows = {row.method: row for row in repaired.methods}
    assert rows[Method.GLOBAL_THRESHOLD].settings["chosen_on_images"] == plan.images["fit"]
    assert rows[Method.DFR].settings["chosen_on_images"] == pytest.approx(plan.images["fit"] / 2, abs=3)


def test_the_repaired_weights_are_the_users_network_with_another_last_layer(
    repaired: va.RepairResult, module: Network, result: va.Result
) -> None:
    assert repaired.weights is not None
    own = {f"network.{name}": tensor for name, tensor in module.state_dict().items()}
    assert hash_state(load_file(result.folder / "models" / "audited.safetensors")) == hash_state(own)
    state = load_file(repaired.weights)
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, own[name])}
    assert changed
    assert changed <= {"network.answer.weight", "network.answer.bias"}


def test_an_interrupted_repair_goes_on_where_it_was(
    repaired: va.RepairResult, result: va.Result, net: va.Net, data: va.Data, module: Network, tmp_path: Path
) -> None:
    kept, given = file_hash(result.folder / "models" / "audited.safetensors"), hash_state(module.state_dict())

    def interrupt(step: str, _done: int, _total: int) -> None:
        if step == "repair: oxonfair":
            raise KeyboardInterrupt

    asked: dict[str, Any] = {"net": net, "data": data, "reaudit": False, "report": False}
    with suppress(KeyboardInterrupt):
        va.repair(result, tmp_path / "repair", callback=interrupt, **asked)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "repair" / "methods").iterdir()}
    assert {"dfr.json", "global_threshold.json"} <= set(done)
    assert "oxonfair.json" not in done
    assert not (tmp_path / "repair" / "repair.json").exists()
    again = va.repair(result, tmp_path / "repair", **asked)
    assert done.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "repair" / "methods").iterdir()}.items()
    for row, other in zip(again.methods, repaired.methods, strict=True):
        assert row.model_dump(exclude={"seconds"}) == other.model_dump(exclude={"seconds"})
    assert again.record.recommended == repaired.record.recommended
    assert file_hash(result.folder / "models" / "audited.safetensors") == kept
    assert hash_state(module.state_dict()) == given


def test_weights_that_changed_since_the_audit_are_refused_in_a_line(
    result: va.Result, net: va.Net, data: va.Data, tmp_path: Path
) -> None:
    copied = result.save(tmp_path / "run")
    path = copied.folder / "models" / "audited.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(va.InputError, match=r"audited.safetensors: has changed since the run; restore it, or audit"):
        va.repair(copied, tmp_path / "repair", net=net, data=data, methods=["untouched"], report=False)
    assert not (tmp_path / "repair" / "repair.json").exists()
