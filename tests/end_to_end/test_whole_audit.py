"""One small audit from card to report, begun, gone on with, rendered again and reproduced."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file

import vit_audit as va
from audit.controls.control_images import ControlSet, rendered_set
from audit.controls.control_models import ControlModels, train_enough
from audit.data.synthetic import SyntheticSource, edited_key
from audit.errors import UnfinishedError
from audit.evidence.outcome import decide
from audit.exit_codes import ExitCode
from audit.models.adapters.heads import Heads
from audit.models.checkpoint import started_from
from audit.records import AnswerLevel, Audit
from audit.report.drawn.examples import rendered
from tests.end_to_end.conftest import TABLE, TONE, Invoke, Run, write_card
from tests.small_world import SMALL_CARD, World, without_pdf

pytestmark = pytest.mark.end_to_end
# Effects that need no audited model.
BEFORE_MODELS = {"samples.parquet", "controls.parquet", "control-colour.npz", "control-blur.npz"}
FOLDERS = ("tables", "exports")  # of what is printed
NO_TORCH = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(name + " is forbidden here")
sys.meta_path.insert(0, Forbid())
from audit.cli import main
main()
"""


def written(folder: Path) -> dict[str, int]:
    """Return when each file of a folder was written, in nanoseconds; what is replaced by its like is written later."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what may differ between two runs: times, and when control models were measured."""
    provenance = {k: v for k, v in record["provenance"].items() if k != "started"}
    return {**record, "provenance": provenance, "controls": {**record["controls"], "setup": None}}


def test_prints_outcome_three_figures_and_path(small_run: Run) -> None:
    lines = small_run.result.stdout.splitlines()
    assert lines[0] == f"outcome: {small_run.record['outcome']}"
    for start in ("largest gap: ", "carried by: ", "controls: "):
        assert sum(line.startswith(start) for line in lines) == 1
    assert lines[-1] == f"report: {small_run.folder / 'report.html'}"
    assert small_run.result.exit_code == small_run.record["exit_code"]


def test_planted_association_is_found(small_run: Run) -> None:
    assert small_run.record["outcome"] == "DISPARITY FOUND"
    assert {f["kind"] for f in small_run.record["findings"]} == {"disparity", "head"}


def test_run_directory_is_complete(small_run: Run) -> None:
    names = {p.relative_to(small_run.folder).as_posix() for p in small_run.folder.rglob("*") if p.is_file()}
    wanted = {
        "audit.json", "audit.schema.json", "card.yaml", "preregistration.json", "log.jsonl", "manifest.json",
        "report.html", "report.pdf", "exports/junit.xml", "exports/model-card.cdx.json",
        "effects/swap-seed-0.parquet", "effects/together.parquet", "effects/samples.parquet",
        "effects/control-colour.npz", "effects/control-blur.npz", "effects/attention.parquet",
        "effects/written.parquet", "effects/trained.parquet",
        "effects/unpatched.parquet", "models/seed-0.safetensors", "models/seed-1.safetensors",
        "models/balanced-0.safetensors",
    }  # fmt: skip
    assert wanted <= names
    assert {n for n in names if n.startswith("tables/") and n.endswith(".csv")}
    assert not {n for n in names if n.endswith((".part", ".lock"))}
    assert (small_run.folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert load_file(small_run.folder / "models" / "seed-0.safetensors")
    model = {
        **yaml.safe_load(small_run.card.read_text(encoding="utf-8"))["model"],
        "classes": small_run.record["data"]["labels"],
    }
    opened = va.load_model(model | {"weights": str(small_run.folder / "models" / "seed-0.safetensors")})
    assert opened.preprocessing.steps == small_run.record["model"]["preprocessing"]["steps"]
    begun, *lines = map(json.loads, (small_run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    assert begun == {"started": small_run.record["provenance"]["started"]}
    stages = [line for line in lines if "seconds" in line]
    assert stages and all(stage["seconds"] >= 0 for stage in stages)
    (used,) = (line for line in lines if line not in stages)
    assert len(used["controls"]) == 1 and used["imported"] == []
    assert (small_run.folder / "card.yaml").read_text(encoding="utf-8") == small_run.card.read_text(encoding="utf-8")


def test_record_fits_its_schema(small_run: Run) -> None:
    import jsonschema  # which takes seconds that others need not wait for

    schema = json.loads((small_run.folder / "audit.schema.json").read_text(encoding="utf-8"))
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(small_run.record)) == []


def test_manifest_holds_the_hash_of_every_file(small_run: Run) -> None:
    subjects = json.loads((small_run.folder / "manifest.json").read_text(encoding="utf-8"))["subject"]
    files = {subject["name"]: subject["digest"]["sha256"] for subject in subjects}
    present = {p.relative_to(small_run.folder).as_posix() for p in small_run.folder.rglob("*") if p.is_file()}
    assert set(files) == present - {"manifest.json"}
    for name, digest in files.items():
        assert digest == hashlib.sha256((small_run.folder / name).read_bytes()).hexdigest(), name


def test_effects_have_one_row_an_image_head_and_donor_kind(small_run: Run) -> None:
    table = pd.read_parquet(small_run.folder / "effects" / "swap-seed-0.parquet")
    key = ["contrast", "split", "recipient", "layer", "head", "donor_kind"]
    assert not table.duplicated(key).any()
    for _, part in table.groupby(["contrast", "split"]):
        assert len(part) == part["recipient"].nunique() * 8 * 2
    assert set(table["donor_kind"]) == {"cross", "placebo"}
    assert (table["donor"] != table["recipient"]).all()


def test_sets_of_heads_are_patched_beside_single_ones(small_run: Run) -> None:
    record = small_run.record
    confirmed = [h for h in record["heads"] if h["verdict"] == "confirmed"]
    assert confirmed
    (every,) = (row for row in record["joint"] if row["all_heads"])
    assert len(every["heads"]) == 8
    summed = sum(h["confirmation"]["value"] for h in record["heads"])
    assert every["sum_of_singles"]["value"] == pytest.approx(summed, abs=1e-9)
    assert every["beyond_sum"]["value"] == pytest.approx(every["together"]["value"] - summed, abs=1e-9)
    assert len(record["joint"]) == len(set(map(str, (row["heads"] for row in record["joint"]))))
    if len(confirmed) > 1:
        assert sorted(h["name"] for h in confirmed) in [sorted(row["heads"]) for row in record["joint"]]


def test_who_writes_the_gap_sums_to_it_and_is_computed_again_from_the_tables(small_run: Run) -> None:
    record, effects = small_run.record, small_run.folder / "effects"
    whole, near = record["ledgers"]
    assert (whole["among"], near["among"], whole["why_not"]) == ("all", "near the decision", None)
    assert whole["closure_of_images"] < 1e-4 and whole["closure"] < 1e-6
    samples = pd.read_parquet(effects / "samples.parquet").set_index("image")
    answers = pd.read_parquet(effects / "unpatched.parquet").query("seed == 0").set_index("image")
    known = samples.loc[answers.index]
    shares = known["label"].value_counts(normalize=True)
    written = pd.read_parquet(effects / "written.parquet")
    parts = written.pivot(index="image", columns="place", values="m:smiling").loc[answers.index]
    apart = (parts.sum(axis=1) - answers["m:smiling"]).abs().max()
    assert apart <= 1e-4 * max(1, answers["m:smiling"].abs().max())

    def gap(values: pd.Series) -> float:
        cells = values.groupby([known["label"], known["skin_tone"]]).mean().unstack()
        return float((cells["darker"] - cells["lighter"]) @ shares)

    rows = [r for r in record["ledger"] if (r["among"], r["level"]) == ("all", "part")]
    assert [r["gap"]["value"] for r in rows] == pytest.approx([gap(parts[place]) for place in parts], abs=1e-5)
    assert whole["gap"]["value"] == pytest.approx(gap(answers["m:smiling"]), abs=1e-5)
    for level in ("part", "family in layer", "family"):
        summed = sum(r["gap"]["value"] for r in record["ledger"] if (r["among"], r["level"]) == ("all", level))
        assert summed == pytest.approx(whole["gap"]["value"], abs=1e-5)
    assert sum(line.startswith("written by: ") for line in small_run.result.stdout.splitlines()) == 1
    page = (small_run.folder / "report.html").read_text(encoding="utf-8")
    assert "Who writes the gap into the answer" in page


def test_who_writes_the_gap_is_a_table_and_a_picture_in_python(small_run: Run) -> None:
    result = va.open_run(small_run.folder)
    table = result.ledger.to_frame()
    assert set(table["level"]) == {"part", "family in layer", "family", "layer"}
    assert len(result.ledger.plot(most=3).get_yticklabels()) == 3
    assert [axes.get_ylabel() for axes in result.plot_ledgers()] == ["points", "nats", "points"]
    with pytest.raises(va.InputError, match="no gap of these is in the ledgers; choose from: "):
        result.plot_ledgers("gender:a-b")


def test_where_the_gap_runs_is_one_answer_whose_numbers_are_those_of_the_tables(small_run: Run) -> None:
    record, effects = small_run.record, small_run.folder / "effects"
    (where,), (smallest,) = record["answers"], record["smallest"]
    assert where["level"] in [str(level) for level in AnswerLevel]
    patched = pd.read_parquet(effects / "parts.parquet")
    cells = (
        patched.groupby(["set", "direction", "donor_kind", "label", "side"])["p:smiling"].mean().unstack("donor_kind")
    )
    audited = pd.read_parquet(effects / "samples.parquet").query("split != 'train'")
    shares = audited["label"].value_counts(normalize=True)
    moved = (cells["cross"] - cells["placebo"]).xs("denoising", level="direction").unstack("side")
    by_hand = {
        name: float(((rows["reference"] - rows["group"]) / 2).droplevel("set") @ shares)
        for name, rows in moved.groupby("set")
    }
    named = {"attention": "all attention", "MLP": "all MLPs"}
    for row in record["carried"]:
        place = row["part"] if row["part"] in named else "L" if row["part"] == "layer" else f"{row['part']} at "
        name = named.get(row["part"], f"{place}{row['layer']}")
        assert row["denoised"]["value"] == pytest.approx(by_hand[name], abs=1e-6)
    assert {"attention", "MLP", "layer", "class token", "patch tokens"} == {row["part"] for row in record["carried"]}
    if smallest["heads"]:
        sets = pd.read_parquet(effects / "smallest.parquet").query("split == 'confirmation'")["set"].unique()
        assert "+".join(sorted(smallest["heads"])) in sets
        assert len(sets) == 1 + len(smallest["random"])
    (carried_by,) = (line for line in small_run.result.stdout.splitlines() if line.startswith("carried by: "))
    assert not where["heads"] or where["heads"][0] in carried_by
    assert "Where in the network" in (small_run.folder / "report.html").read_text(encoding="utf-8")
    result = va.open_run(small_run.folder)
    assert [row.level for row in result.answers] == [where["level"]]
    assert len(result.carried.to_frame()) == len(record["carried"])
    assert [row.heads for row in result.smallest] == [smallest["heads"]]


def test_what_training_put_there_sums_to_the_gap_and_ends_at_the_audited_model(small_run: Run) -> None:
    record = small_run.record
    hybrids = pd.read_parquet(small_run.folder / "effects" / "trained.parquet")
    answers = pd.read_parquet(small_run.folder / "effects" / "unpatched.parquet").query("seed == 0").set_index("image")
    assert [t["order"] for t in record["trained"]] == ["input first", "output first", "heads of a layer", "all orders"]
    by_order = {
        order: {r["player"]: r["rate"]["value"] for r in record["trained_parts"] if r["order"] == order}
        for order in ("input first", "heads of a layer")
    }
    whole, parted = by_order.values()
    ((attention, value),) = ((name, value) for name, value in whole.items() if name not in parted)
    assert attention.endswith(" attention")
    assert sum(parted[name] for name in parted.keys() - whole.keys()) == pytest.approx(value, abs=1e-9)
    for total in record["trained"]:
        rows = [r for r in record["trained_parts"] if r["order"] == total["order"]]
        assert (rows[0]["player"], total["references"]) == ("", 1)
        for scale in ("rate", "probability", "log_odds"):
            summed = sum(r[scale]["value"] for r in rows)
            assert summed == pytest.approx(total[scale]["value"], abs=1e-9)
        last = hybrids[hybrids["order"] == total["order"]]
        last = last[last["step"] == last["step"].max()].set_index("image")
        assert (last["predicted"] == answers.loc[last.index, "predicted"]).all()
        np.testing.assert_allclose(last["m:smiling"], answers.loc[last.index, "m:smiling"], atol=1e-4)
    assert sum(line.startswith("trained into it: ") for line in small_run.result.stdout.splitlines()) == 1
    assert len(va.open_run(small_run.folder).trained.to_frame()) == len(record["trained_parts"])


def test_exact_pairs_are_drawn_and_patched(small_run: Run) -> None:
    (row,) = small_run.record["pairs"]
    assert row["pairs"] > 60
    (trip,) = (c for c in small_run.record["controls"]["controls"] if c["id"].startswith("round_trip"))
    assert (trip["estimate"]["value"], trip["passed"], trip["gates"]) == (0.0, True, "Design B")
    table = pd.read_parquet(small_run.folder / "effects" / "pairs.parquet")
    whole = table[table["layer"] == -1].pivot(index="pair", columns="version", values="p:smiling")
    assert (whole["own"] - whole["edited"]).abs().max() > 0.01
    heads = small_run.record["heads"]
    assert all(head["natural_indirect"]["low"] <= head["natural_indirect"]["value"] for head in heads)
    assert {a["design"] for a in small_run.record["agreement"]} >= {"Design B", "attribution patching"}


@pytest.mark.usefixtures("no_pdf")
def test_second_run_takes_up_what_is_there(small_run: Run, world: World, invoke: Invoke) -> None:
    before, cache = small_run.record, world.shared / "cache"
    models, effects = written(small_run.folder / "models"), written(small_run.folder / "effects")
    trained = written(cache)
    result = invoke("run", small_run.card, "--out", small_run.out)
    assert written(small_run.folder / "models") == models
    again = {
        "samples.parquet",
        "controls.parquet",
        "unpatched.parquet",
        "control-colour.npz",
        "control-blur.npz",
    }  # as every attempt lays them out
    effects = {name: when for name, when in effects.items() if name not in again}
    assert len(effects) >= 5
    assert effects.items() <= written(small_run.folder / "effects").items()
    again_in_cache = {name for name in trained if name.endswith(("recipe.json", "made-of.json"))}
    assert {n: t for n, t in trained.items() if n not in again_in_cache}.items() <= written(cache).items()
    assert result.exit_code == small_run.result.exit_code, result.output
    assert [p.name for p in small_run.out.iterdir()] == [small_run.folder.name]
    assert without_times(small_run.record) == without_times(before)


@pytest.mark.long
def test_a_run_without_report_is_rendered_later(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    shutil.copytree(small_run.folder, tmp_path / small_run.folder.name)
    folder = tmp_path / small_run.folder.name
    for name in ("report.html", "report.pdf"):
        (folder / name).unlink()
    result = invoke("run", small_run.card, "--out", tmp_path, "--no-report")
    assert result.exit_code == small_run.result.exit_code, result.output
    assert result.stdout.splitlines()[-1] == f"run: {folder}"
    assert not list(folder.glob("report.*"))
    assert invoke("verify", folder).stdout.startswith("verified: ")
    assert invoke("render", folder).exit_code == 0
    assert (folder / "report.pdf").is_file()


@pytest.mark.long
def test_render_repeats_the_report_without_torch(small_run: Run) -> None:
    before = {name: (small_run.folder / name).read_bytes() for name in ("report.html", "report.pdf", "manifest.json")}
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "render", str(small_run.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, content in before.items():
        assert (small_run.folder / name).read_bytes() == content, name


@pytest.mark.parametrize("kind", ["disparity", "head"])
def test_findings_reproduce(small_run: Run, invoke: Invoke, kind: str) -> None:
    finding = next(f for f in small_run.record["findings"] if f["kind"] == kind)
    result = invoke("reproduce", small_run.folder, finding["id"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "reproduced"
    assert f"expected  {finding['expected']:+.6f}" in result.stdout


def test_the_command_in_a_finding_works_as_it_stands(
    small_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_run.folder, tmp_path / "reports" / small_run.folder.name)
    monkeypatch.chdir(tmp_path)
    command = small_run.record["findings"][0]["reproduce"].split()
    assert command[0] == "vit-audit"
    assert invoke(*command[1:]).exit_code == 0


def test_a_changed_number_is_not_reproduced(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / small_run.folder.name
    shutil.copytree(small_run.folder, folder)
    record = small_run.record
    record["findings"][0]["expected"] += 0.01
    (folder / "audit.json").write_text(json.dumps(record), encoding="utf-8")
    result = invoke("reproduce", folder, record["findings"][0]["id"])
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert "NOT REPRODUCED" in result.stdout


def test_unknown_finding_names_those_there_are(small_run: Run, invoke: Invoke) -> None:
    result = invoke("reproduce", small_run.folder, "F-00000000")
    assert result.exit_code == 2
    assert small_run.record["findings"][0]["id"] in result.stderr


def with_null_that_knows(trained: ControlModels) -> ControlModels:
    """Let one null donor of each channel be a clean model: it carries what a null must not."""
    models = dict(trained.models)
    for role, corruption in (("colour", "gray"), ("blur", "blur")):
        models[f"{role}_{corruption}_donor_2"] = models[f"{role}_clean_donor_2"]
    return replace(trained, models=models)


def with_stranger(trained: ControlModels) -> ControlModels:
    """Let the clean model come from elsewhere: its heads in another order."""
    models = dict(trained.models)
    model = models["colour_clean_donor_2"]
    for block in model.blocks:
        n, width = block.attn.num_heads, block.attn.head_dim
        qkv, proj = block.attn.qkv, block.attn.proj
        qkv.weight.data = qkv.weight.data.unflatten(0, (3, n, width)).flip(1).flatten(0, 2).clone()
        qkv.bias.data = qkv.bias.data.unflatten(0, (3, n, width)).flip(1).flatten(0, 2).clone()
        proj.weight.data = proj.weight.data.unflatten(1, (n, width)).flip(1).flatten(1, 2).clone()
    return replace(trained, models=models)


def with_independent_donor(trained: ControlModels) -> ControlModels:
    """Let a clean model have been trained from weights of its own."""
    name = "colour_clean_donor_2"
    model = copy.deepcopy(trained.models[name])
    generator = torch.Generator().manual_seed(5)
    for weights in model.parameters():
        weights.data.normal_(std=0.05, generator=generator)
    return replace(
        trained, models={**trained.models, name: model}, started_from={**trained.started_from, name: "elsewhere"}
    )


@pytest.mark.usefixtures("no_pdf")
@pytest.mark.parametrize(
    ("damage", "title"),
    [
        pytest.param(with_independent_donor, "The models were trained from the same weights", marks=pytest.mark.long),
        pytest.param(with_null_that_knows, "carries less than half of its effect", marks=pytest.mark.long),
        (with_stranger, "Heads of one model correspond to their namesakes in the other"),
    ],
)
def test_failed_control_shows_no_finding(
    small_run: Run,
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[ControlModels], ControlModels],
    title: str,
) -> None:
    def corrupted(*args: Any, **named: Any) -> tuple[ControlModels, ControlSet]:
        # the folder is another one, too: what was measured before with sound models does not count
        trained, images = train_enough(*args, **named)
        return replace(damage(trained), folder=tmp_path / "cache"), images

    monkeypatch.setattr("audit.pipeline.run_controls.train_enough", corrupted)
    result = invoke("run", small_run.card, "--out", tmp_path / "out")
    check_invalid(result, tmp_path / "out", title)
    (folder,) = (tmp_path / "out").iterdir()
    assert invoke("verify", folder).stdout.startswith("verified: ")


def check_invalid(result: Result, out: Path, title: str) -> None:
    """Assert that an audit ended INVALID because of the control ``title``, and says nothing about groups."""
    assert result.exit_code == 3, result.output
    assert result.stdout.startswith("outcome: INVALID\n")
    assert "largest gap" not in result.stdout
    (folder,) = out.iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    for part in ("rates", "contrasts", "findings", "heads", "grids", "localisation", "stability"):
        assert not record[part], part
    assert {reason["code"] for reason in record["reasons"]} == {"control failed"}
    assert record["next_steps"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "INVALID" in page
    assert title in page
    assert "vit-audit reproduce" not in page
    assert {p.name for p in (folder / "effects").iterdir()} == BEFORE_MODELS


@pytest.mark.usefixtures("no_pdf")
def test_engine_that_takes_the_wrong_head_is_caught(
    small_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour and blur come from the cache here; the identities are run again on every audit's own model."""

    right = Heads.head_output

    def of_its_neighbour(body: Heads, layer: int, head: int, z: torch.Tensor) -> torch.Tensor:
        return right(body, layer, (head + 1) % body.units(layer), z)

    monkeypatch.setattr(Heads, "head_output", of_its_neighbour)
    result = invoke("run", small_run.card, "--out", tmp_path / "out")
    check_invalid(result, tmp_path / "out", "The fast engine agrees with the slow reference")


@pytest.mark.long
@pytest.mark.usefixtures("no_pdf")
def test_a_stranger_in_design_c_is_shown_and_left_out(
    small_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(path: Path) -> str:
        return "elsewhere" if path.stem == "balanced-1" else started_from(path)

    monkeypatch.setattr("audit.pipeline.train_models.started_from", elsewhere)
    card = write_card(tmp_path / "card.yaml", training={"balanced_seeds": 2})
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code == small_run.result.exit_code, result.output
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    failed = [c for c in record["controls"]["controls"] if not c["passed"]]
    assert [(c["gates"], c["check"]) for c in failed] == [("Design C", "same_base")]
    (left_out,) = (row for row in record["controls"]["not_run"] if row["code"] == "checks failed")
    assert (left_out["design"], left_out["failed"]) == ("Design C", 1)
    assert all(head["design_c"] is None and head["transplant"] is None for head in record["heads"])
    assert [h["confirmation"] for h in record["heads"]] == [h["confirmation"] for h in small_run.record["heads"]]
    assert "Design C is left out" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_pdf")
def test_an_edit_that_cannot_be_undone_is_shown_and_left_out(
    small_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_glasses(_self: SyntheticSource, key: str, attribute: str, group: str) -> str:
        return edited_key(key, glasses="yes", **{attribute: group})

    folder = tmp_path / small_run.folder.name
    later = shutil.ignore_patterns("pairs.parquet", "audit*.json", "card.yaml", "report.*", "manifest.json", *FOLDERS)
    shutil.copytree(small_run.folder, folder, ignore=later)  # an attempt to which pairs were lacking
    monkeypatch.setattr(SyntheticSource, "edited", with_glasses)
    result = invoke("run", small_run.card, "--out", tmp_path, "--no-report")
    assert result.exit_code == small_run.result.exit_code, result.output
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    failed = [c for c in record["controls"]["controls"] if not c["passed"]]
    assert [c["check"] for c in failed] == ["round_trip"]
    assert invoke("verify", folder).stdout.startswith("verified: ")
    assert record["pairs"] == []
    assert all(head["natural_indirect"] is None for head in record["heads"])
    (left_out,) = (row for row in record["controls"]["not_run"] if row["code"] == "checks failed")
    assert (left_out["design"], left_out["failed"]) == ("Design B", 1)


@pytest.mark.long
def test_groups_that_mean_nothing_pass(invoke: Invoke, tmp_path: Path) -> None:
    """Groups assigned at random; the rates of 240 faces are coarse, so the policy is too."""
    assigned = {"skin_tone": {"column": "skin_tone", "reference": "lighter", "permuted": 3}}
    data = {"reader": "synthetic", "rendered": {"train_images": 800, "audit_images": 240}}
    card = write_card(tmp_path / "card.yaml", data=data, groups=assigned, policy={"gap_above": 0.4})
    result = invoke("run", card, "--out", tmp_path / "out", "--no-report")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("outcome: PASSED\n")
    (folder,) = (tmp_path / "out").iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert not record["findings"]
    assert not any(where["status"] == "localised" for where in record["localisation"].values())
    repaired = invoke("repair", folder, "--out", tmp_path / "repair")
    assert (repaired.exit_code, "NOTHING TO REPAIR: The audit detected no gap" in repaired.stdout) == (0, True)
    written = {path.name for path in (tmp_path / "repair").iterdir()} - {".lock"}
    assert written == {"repair.json", "repair.html", "repair.pdf"}
    assert invoke("verify", folder).exit_code == 0


@pytest.mark.long
@pytest.mark.usefixtures("no_pdf")
def test_unfinished_run_keeps_whole_stages_and_goes_on(
    small_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_named: object) -> None:
        raise UnfinishedError("patching", "the machine went away", "run again")

    with monkeypatch.context() as patch:
        patch.setattr("audit.pipeline.in_blocks.sweep", fail)
        result = invoke("run", small_run.card, "--out", tmp_path)
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1] == "patching: the machine went away; run again"
    (folder,) = tmp_path.iterdir()
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert "models/seed-0.safetensors" in names
    assert not names & {"audit.json", "report.html", "manifest.json"}
    assert not [n for n in names if n.endswith((".part", ".lock"))]
    assert invoke("run", small_run.card, "--out", tmp_path).exit_code == small_run.result.exit_code
    (again,) = tmp_path.iterdir()
    record = json.loads((again / "audit.json").read_text(encoding="utf-8"))
    assert without_times(record)["contrasts"] == small_run.record["contrasts"]


def write_served(folder: Path, model: dict[str, Any]) -> None:
    """Write what a model answers to the images of a folder's table, as production would log it."""
    table = pd.read_csv(folder / "faces.csv", encoding="utf-8-sig")
    logits = va.load_model(model, folder=folder).predict([folder / name for name in table["file"]])
    pd.DataFrame(logits, columns=model["classes"]).assign(file=table["file"]).to_csv(folder / "served.csv", index=False)


@pytest.fixture(scope="module")
def own_run(small_run: Run, face_folder: Path, invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Audit a checkpoint that the user already has, on image files and a table; controls start from what it did."""
    shutil.copy(small_run.folder / "models" / "seed-0.safetensors", face_folder / "mine.safetensors")
    model = {"weights": "mine.safetensors", "classes": ["neutral", "smiling"], "preprocess": {"resize": 64}}
    write_served(face_folder, {**SMALL_CARD["model"], **model})
    card = write_card(
        face_folder / "card.yaml",
        name="My own model",
        data=TABLE,
        groups=TONE,
        model={**model, "served": "served.csv"},
        training="none",
        controls={"weights": "rendered"},
        audit={"min_group_size": 20},
    )
    out = tmp_path_factory.mktemp("own")
    with without_pdf():
        result = invoke("run", card, "--out", out)
    assert result.exit_code in (0, 1, 4), result.output
    (folder,) = out.iterdir()
    return Run(card, out, folder, result)


def test_own_model_is_audited_as_it_is(own_run: Run, small_run: Run, invoke: Invoke) -> None:
    record = own_run.record
    assert record["model"]["training"] is None
    assert record["model"]["weights_sha256"] == small_run.record["model"]["weights_sha256"]
    assert record["model"]["seeds"] == []
    assert ("needs training", "Design C") in {(r["code"], r["design"]) for r in record["controls"]["not_run"]}
    assert all(head["design_c"] is None for head in record["heads"])
    assert "Design C: it needs training" in (own_run.folder / "report.html").read_text(encoding="utf-8")
    assert not (own_run.folder / "effects" / "reference.parquet").exists()
    assert invoke("verify", own_run.folder).stdout.startswith("verified: ")


def test_a_model_that_answers_as_deployed_passes_that_control(own_run: Run) -> None:
    first = own_run.record["controls"]["controls"][0]
    assert (first["id"], first["passed"], first["figures"]) == ("served", True, {"differ": 0.0})
    assert first["estimate"]["value"] < 1e-5
    assert first["n"] > 100
    assert "The audited model answers as the deployed one does" in own_run.folder.joinpath("report.html").read_text(
        "utf-8"
    )


@pytest.mark.usefixtures("no_pdf")
def test_a_model_that_answers_otherwise_than_deployed_is_invalid_before_anything_is_trained(
    own_run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    card = yaml.safe_load(own_run.card.read_text(encoding="utf-8"))
    card["model"]["preprocess"] = {"resize": 80}
    path = own_run.card.with_name("otherwise.yaml")
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    checked = invoke("check", path)
    assert checked.exit_code == 3
    assert "as deployed: NO" in checked.stdout
    result = invoke("run", path, "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert (result.exit_code, record["outcome"]) == (3, "INVALID")
    assert [(c["id"], c["passed"]) for c in record["controls"]["controls"]] == [("served", False)]
    assert record["contrasts"] == record["rates"] == []
    assert "The audited model is not the one in use" in (folder / "report.html").read_text(encoding="utf-8")
    assert invoke("verify", folder).exit_code == 0


def test_another_classifier_under_the_same_name_is_another_model(own_run: Run, invoke: Invoke) -> None:
    """The folder of the first model is there, and must not be taken up."""
    path = own_run.card.with_name("mine.safetensors")
    kept, state = path.read_bytes(), load_file(path)
    try:
        save_file({**state, "head.weight": -state["head.weight"]}, path)
        result = invoke("run", own_run.card, "--out", own_run.out, "--no-report")
    finally:
        path.write_bytes(kept)
    assert result.exit_code in (0, 1, 3, 4), result.output  # its answers are the other way round
    (other,) = set(own_run.out.iterdir()) - {own_run.folder}
    records = [json.loads((f / "audit.json").read_text(encoding="utf-8")) for f in (own_run.folder, other)]
    assert records[0]["model"]["weights_sha256"] != records[1]["model"]["weights_sha256"]
    assert records[0]["accuracy"] != records[1]["accuracy"]
    shutil.rmtree(other)


def test_any_failed_control_of_the_audit_makes_it_invalid(small_run: Run) -> None:
    report = Audit.model_validate(small_run.record).controls
    contrasts = Audit.model_validate(small_run.record).contrasts
    assert decide(report, contrasts, gap_above=0.1).outcome != "INVALID"
    for number, control in enumerate(report.controls):
        broken = [*report.controls]
        broken[number] = control.model_copy(update={"passed": False})
        failed = report.model_copy(update={"controls": broken})
        verdict = decide(failed, contrasts, gap_above=0.1)
        assert ((verdict.outcome, verdict.exit_code) == ("INVALID", 3)) == (control.gates == "audit"), control.id


def test_control_images_can_be_rendered_again_from_the_record(small_run: Run) -> None:
    setup, spec = Audit.model_validate(small_run.record).controls.setup, SMALL_CARD["controls"]
    assert setup is not None and setup.rendered is not None and setup.seed is not None
    used = rendered_set(spec["train_images"], spec["eval_images"], 64, setup.seed)
    _, shown = rendered(setup.rendered, setup.evaluate, setup.seed)
    assert np.array_equal(shown, used.evaluate[: len(shown)])


def test_own_model_may_share_the_controls_of_what_it_was_fine_tuned_from(own_run: Run, small_run: Run) -> None:
    assert own_run.record["controls"]["setup"]["weights"] == "rendered"
    shared, own = (
        [c for c in run.record["controls"]["controls"] if c["kind"] in ("effect", "null")]
        for run in (own_run, small_run)
    )
    assert shared == own


@pytest.mark.long
def test_controls_of_an_own_model_may_start_from_its_own_weights(own_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    card = yaml.safe_load(own_run.card.read_text(encoding="utf-8"))
    del card["controls"]["weights"]
    apart = own_run.card.with_name("apart.yaml")
    apart.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    result = invoke("run", apart, "--out", tmp_path, "--no-report")
    assert result.exit_code == own_run.result.exit_code, result.output
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert record["controls"]["setup"]["weights"] != "rendered"
    assert [h["confirmation"] for h in record["heads"]] == [h["confirmation"] for h in own_run.record["heads"]]


def test_missing_annotations_are_shown_as_unknown(own_run: Run) -> None:
    record = own_run.record
    (attribute,) = record["data"]["attributes"]
    assert attribute["unknown_images"] == 4
    unknown = [row for row in record["data"]["counts"] if row["group"] == "unknown"]
    assert sum(row["images"] for row in unknown) == 4
    assert sum(row["images"] for row in record["data"]["counts"]) == record["data"]["images"] == 160
    assert "unknown" in {row["group"] for row in record["rates"]}
    assert "unknown" in (own_run.folder / "report.html").read_text(encoding="utf-8")


def test_own_findings_reproduce_with_the_data_folder(own_run: Run, invoke: Invoke) -> None:
    finding = own_run.record["findings"][0]
    assert finding["reproduce"].endswith("--data FOLDER")
    result = invoke("reproduce", own_run.folder, finding["id"], "--data", own_run.card.parent)
    assert result.exit_code == 0, result.output


def test_no_path_of_this_machine_in_the_record(own_run: Run) -> None:
    for name in ("audit.json", "report.html"):
        text = (own_run.folder / name).read_text(encoding="utf-8")
        assert str(own_run.card.parent) not in text
        assert str(Path.home()) + "/" not in text
