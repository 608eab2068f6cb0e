"""The benchmark of moved means: its worlds, and that every figure of its page comes out of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.means import run
from benchmarks.means.formula import Formula, count
from benchmarks.means.worlds import SPREAD, Maker, World

pytestmark = pytest.mark.unit


def test_the_group_moves_the_log_odds_by_so_many_nats() -> None:
    maker, rng = Maker(World(group=0.8), 3), np.random.default_rng(0)
    sample = maker.draw(rng, 400)
    with torch.no_grad():
        odds = maker.model(sample.images).diff(dim=1)[:, 0].numpy()
    assert odds[sample.is_group].mean() - odds[~sample.is_group].mean() == pytest.approx(0.8, abs=0.5)
    assert odds.std() == pytest.approx(SPREAD, rel=0.3)
    assert np.bincount(2 * sample.label + sample.is_group).tolist() == [100] * 4


def test_images_of_a_person_share_label_and_group() -> None:
    sample = Maker(World(a_person=4), 0).draw(np.random.default_rng(0), 80)
    for person in np.unique(sample.subject):
        own = sample.subject == person
        assert own.sum() == 4
        assert len(set(sample.label[own])) == len(set(sample.is_group[own])) == 1


def test_the_formula_gives_its_gap_and_intervals_that_hold_it() -> None:
    found = count(Formula(group=0.8), 12, 1)
    assert found["true"][0] == pytest.approx(0.8, abs=0.02)
    assert found["coverage"]["with"]["log_odds"] >= 0.75
    assert found["coverage"]["without"]["log_odds"] < found["coverage"]["with"]["log_odds"]


@pytest.mark.long
def test_a_small_run_fills_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WORLDS", {"no group": World(images=48), "group": World(images=48, group=2.0)})
    out = tmp_path / "results.json"
    asked = ["--models", "1", "--runs", "2", "--draws", "2", "--seed", "1", "--work", str(tmp_path), "--json", str(out)]
    result = CliRunner().invoke(run.main, asked, catch_exceptions=False)
    assert result.exit_code == 0
    results = json.loads(out.read_text(encoding="utf-8"))
    text = run.tables(results)
    assert text.count("\n| no group |") == text.count("\n| group |") == 4
    assert results["worlds"]["group"]["power"]["means"] is not None
    assert "nan" not in text


def test_the_published_page_has_the_figures_of_its_results() -> None:
    page = (run.HERE / "README.md").read_text(encoding="utf-8")
    results = json.loads((run.HERE / "results.json").read_text(encoding="utf-8"))
    assert run.tables(results) in page
