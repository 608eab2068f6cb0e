"""Whole audits of models that are read otherwise than by softmax and argmax."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.conftest import Invoke, Run, write_card

pytestmark = pytest.mark.end_to_end
MEASURED = (
    "rates",
    "contrasts",
    "ranges",
    "accuracy",
    "heads",
    "joint",
    "grids",
    "localisation",
    "stability",
    "agreement",
)
EQUAL = 1e-6


def audited(invoke: Invoke, place: Path, state: dict[str, torch.Tensor], **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Audit weights as they are; return the run directory and its record."""
    place.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, place / "w.safetensors")
    model = {"weights": "w.safetensors", "classes": ["neutral", "smiling"], **changes.pop("model", {})}
    card = write_card(
        place / "card.yaml", model=model, training="none", controls={"weights": "rendered"}, **changes,
    )  # fmt: skip
    result = invoke("run", card, "--out", place / "out", "--no-report")
    assert result.exit_code in (0, 1), result.output
    (folder,) = (place / "out").iterdir()
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert record["controls"]["valid"]
    return folder, record


@pytest.fixture(scope="module")
def state(small_run: Run) -> dict[str, torch.Tensor]:
    """Return the weights that the small audit has trained: two classes, softmax."""
    found: dict[str, torch.Tensor] = load_file(small_run.folder / "models" / "seed-0.safetensors")
    return found


@pytest.fixture(scope="module")
def softmax(invoke: Invoke, state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return audited(invoke, tmp_path_factory.mktemp("pair") / "own", state)[1]


def as_one_logit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network of one logit that says the same: the second class's minus the first's."""
    return state | {name: state[name][1:] - state[name][:1] for name in ("head.weight", "head.bias")}


def differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Yield where two trees differ by more than rounding."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{place}[{number}]")
    elif isinstance(a, float) and isinstance(b, float):
        if not math.isclose(a, b, rel_tol=EQUAL, abs_tol=EQUAL):
            yield f"{place}: {a} and {b}"
    elif a != b:
        yield f"{place}: {a} and {b}"


@pytest.mark.long
@pytest.mark.parametrize("reading", [{"decision": "argmax"}, {"threshold": 0.5}])
def test_one_logit_gives_the_numbers_of_its_softmax(
    reading: dict[str, Any],
    invoke: Invoke,
    state: dict[str, torch.Tensor],
    softmax: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder, record = audited(invoke, tmp_path / "own", as_one_logit(state), model={"output": "sigmoid", **reading})
    assert record["heads"]
    for part in MEASURED:
        assert list(differences(softmax[part], record[part], part)) == []
    assert record["outcome"] == softmax["outcome"]
    assert [f["kind"] for f in record["findings"]] == [f["kind"] for f in softmax["findings"]]
    told = {k: record["model"][k] for k in ("output", "one_logit", "threshold")}
    assert told == {"output": "sigmoid", "one_logit": True, "threshold": reading.get("threshold")}
    assert invoke("verify", folder).exit_code == 0
    for finding in record["findings"][:2]:
        assert invoke("reproduce", folder, finding["id"]).exit_code == 0


@pytest.mark.usefixtures("no_pdf")
def test_sigmoids_at_a_threshold_are_counted_one_by_one(
    invoke: Invoke, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Rates are those of plain masks on the stored probabilities; an image may be called both, or neither."""
    card = {"audit": {"outcomes": ["neutral", "smiling"]}, "model": {"output": "sigmoid", "threshold": 0.6}}
    folder, record = audited(invoke, tmp_path / "own", state, **card)
    table = pd.read_parquet(folder / "effects" / "unpatched.parquet")
    samples = pd.read_parquet(folder / "effects" / "samples.parquet")
    group = samples.set_index("image").loc[table["image"], "skin_tone"].to_numpy()
    assert len(np.unique(table["p:neutral"] + table["p:smiling"])) > 2
    for outcome in ("neutral", "smiling"):
        called = (table[f"p:{outcome}"] >= 0.6).to_numpy()
        assert (table[f"called:{outcome}"].to_numpy() == called).all()
        for row in record["rates"]:
            if row["outcome"] == outcome:
                assert row["selection_rate"]["value"] == pytest.approx(called[group == row["group"]].mean(), abs=1e-12)
    both = table["called:neutral"].astype(int) + table["called:smiling"]
    assert (both != 1).any()
    assert (table["predicted"] == "smiling").equals(table["m:smiling"] > table["m:neutral"])
    assert record["model"]["decision"] == "threshold"
    assert invoke("verify", folder).exit_code == 0
    for finding in record["findings"][:2]:
        assert invoke("reproduce", folder, finding["id"]).exit_code == 0
    assert invoke("render", folder).exit_code == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "called each class whose probability is 0.6 or more: several, or none" in page


@pytest.mark.long
def test_sigmoids_read_by_argmax_are_called_what_a_softmax_calls_them(
    invoke: Invoke, state: dict[str, torch.Tensor], softmax: dict[str, Any], tmp_path: Path
) -> None:
    reading = {"output": "sigmoid", "decision": "argmax"}
    folder, record = audited(invoke, tmp_path / "own", state, model=reading)
    for part in ("contrasts", "ranges", "accuracy"):
        assert list(differences(softmax[part], record[part], part)) == []
    table = pd.read_parquet(folder / "effects" / "unpatched.parquet")
    np.testing.assert_allclose(np.log(table["p:smiling"] / (1 - table["p:smiling"])), table["m:smiling"], atol=1e-6)
    assert not any(name.startswith("called:") for name in table)
