"""A repair through the command line: planned first, certified on images that nothing else has read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import vit_audit as va
from audit.data.sealed import count_openings
from audit.data.synthetic import SyntheticSource, sample_faces
from audit.exit_codes import ExitCode
from audit.records.repair_methods import Method, WhyNotOffered
from audit.records.repair_run import RepairState
from audit.store import file_hash
from tests.end_to_end.conftest import Invoke, Run, World, write_card

pytestmark = pytest.mark.end_to_end
SHARES = {"train": 0.2, "discovery": 0.1, "confirmation": 0.1, "repair": 0.2, "sealed": 0.4}
CHEAP = ["untouched", "global_threshold", "dfr", "oxonfair", "heads_to_reference", "threshold_optimizer"]


@pytest.fixture(scope="module")
def held_back_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the small audit on images of which most are held back."""

    def prepare(folder: Path) -> Path:
        rendered = {"train_images": 400, "audit_images": 160, "association": 0.9}
        data = {"reader": "synthetic", "rendered": rendered, "shares": SHARES}
        margins = {"gap_margin": 0.5, "accuracy_margin": 0.5, "error_margin": 0.5}
        repair = {"methods": CHEAP, "random_draws": 3, "legal_basis": "Consent", **margins}
        return write_card(folder / "card.yaml", data=data, repair=repair)

    return world.audited("held back", prepare, tmp_path_factory.mktemp("held-back"))


def record_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "repair.json").read_text(encoding="utf-8"))
    return loaded


def test_a_repair_is_planned_then_judged_on_images_that_nobody_has_read(
    held_back_run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    run, out = held_back_run.folder, tmp_path / "repair"
    weights = {path.name: file_hash(path) for path in sorted((run / "models").glob("*.safetensors"))}
    said = invoke("repair", run, "--out", out, "--no-reaudit")
    record = record_of(out)
    assert said.exit_code == record["exit_code"], said.output
    assert record["state"] in said.stdout
    assert weights == {path.name: file_hash(path) for path in sorted((run / "models").glob("*.safetensors"))}
    rows = {row["method"]: row for row in record["rows"]}
    assert list(rows) == CHEAP
    asks = rows["threshold_optimizer"]
    assert (asks["group_at_prediction"], asks["weights"], asks["sealed"]) == (True, None, None)
    assert record["recommended"] != "threshold_optimizer"
    untouched = rows["untouched"]["ranked"]
    assert untouched == record["audited"] | {"worst": untouched["worst"]}
    assert untouched["worst"]["change"]["value"] == 0
    chosen = rows[record["recommended"]]
    assert abs(chosen["ranked"]["gap"]["value"]) < abs(untouched["gap"]["value"])
    (judged,) = record["certificates"]
    assert judged["certificate"]["sealed_openings"] == 1
    before = record["audited_sealed"]
    assert judged["certificate"]["images"] == chosen["sealed"]["images"] == before["images"]
    gap = next(line for line in judged["certificate"]["lines"] if line["kind"] == "gap")
    assert (gap["before"], gap["after"]) == (before["gap"]["value"], chosen["sealed"]["gap"]["value"])
    assert count_openings(run) == 1
    assert va.verify(run).holds  # the audit is what it was
    assert (out / "repair.pdf").read_bytes()[:5] == b"%PDF-"
    page = (out / "repair.html").read_text(encoding="utf-8")
    assert "Newly wrong" in page
    assert record["plan"]["audit_sha256"] in page.replace("<wbr>", "")
    images = record["plan"]["images"]
    splits = pd.read_parquet(run / "effects" / "samples.parquet")["split"]
    assert images["fit"] + images["choose"] == (splits == "repair").sum()
    assert images["fit"] > images["choose"] > 0
    assert {row["ranked"]["images"] for row in rows.values()} == {images["choose"]}
    assert rows["global_threshold"]["settings"]["chosen_on_images"] == images["fit"]


def test_the_report_of_the_run_has_a_chapter_on_it(held_back_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    va.open_run(held_back_run.folder).save(run)
    audited = file_hash(run / "audit.json")
    invoke("repair", run, "--out", tmp_path / "repair", "--no-reaudit", "--method", "dfr")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'href="#repair"' in page
    assert "Who pays" in page
    record = (tmp_path / "repair" / "repair.json").read_bytes()
    (kept,) = (path for path in (run / "repairs").iterdir() if path.read_bytes() == record)
    assert file_hash(run / "audit.json") == audited
    assert va.verify(run).holds
    invoke("render", run)
    assert (run / "report.html").read_text(encoding="utf-8") == page
    kept.write_bytes(kept.read_bytes().replace(b'"dfr"', b'"leace"'))
    found = [str(fault) for fault in va.verify(run).faults]
    assert any(fault.startswith(f"repairs/{kept.name}: changed") for fault in found)
    assert any(fault.startswith("report.html: line") for fault in found)


@pytest.mark.long
def test_a_model_whose_certificate_is_shown_is_audited_again(
    held_back_run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    out = tmp_path / "repair"
    command = ("repair", held_back_run.folder, "--out", out, "--method", "global_threshold", "--no-report")
    invoke(*command, "--no-reaudit")
    weights = out / "weights" / "global_threshold.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    said = invoke(*command)
    assert (said.exit_code, (out / "audit").exists()) == (ExitCode.BAD_INPUT, False)
    assert "global_threshold.safetensors: has changed since it was written" in said.stderr
    weights.write_bytes(kept)
    said = invoke(*command)
    record = record_of(out)
    assert record["certificates"][0]["certificate"]["state"] == "CERTIFIED"  # its margins are wide
    again = va.open_run(out / record["reaudit"]["folder"])
    assert again.record.model.weights.endswith("global_threshold.safetensors")
    assert (again.outcome, again.exit_code) == (record["reaudit"]["outcome"], record["reaudit"]["exit_code"])
    assert record["reaudit"]["controls"] == len(again.controls)
    first, second = (
        {row.name for row in audited.heads if row.verdict in ("confirmed", "confirmed, no gap")}
        for audited in (va.open_run(held_back_run.folder), again)
    )
    joint = {head for answer in again.record.answers if answer.jointly for head in answer.heads}
    assert second - first - set(record["plan"]["heads"]) <= set(record["reaudit"]["confirmed"]) <= second | joint
    setup = again.record.controls.setup
    assert setup is not None
    assert setup.weights == "rendered"  # what the first audit's control models started from
    clean = again.outcome != "INVALID" and not record["reaudit"]["confirmed"]
    assert record["state"] == ("CERTIFIED" if clean else "FAILED")
    assert said.exit_code == (ExitCode.DONE if clean else ExitCode.REPAIR_FAILED)


def test_the_same_repair_again_takes_what_is_there_and_says_the_same(
    held_back_run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    run, out = held_back_run.folder, tmp_path / "repair"
    invoke("repair", run, "--out", out, "--no-reaudit", "--no-report")
    first, methods = record_of(out), out / "methods"
    rows = {path.name: path.stat().st_mtime_ns for path in methods.iterdir() if path.stem in CHEAP}
    gaps = json.loads((methods / "random_heads-gaps.json").read_text(encoding="utf-8"))
    assert len(gaps) == first["random"][0]["draws"] > 1
    (methods / "random_heads-gaps.json").write_text(json.dumps(gaps[:1]), encoding="utf-8")  # ended after one of them
    (methods / "random_heads.json").unlink()
    invoke("repair", run, "--out", out, "--no-reaudit", "--no-report")
    again = record_of(out)
    assert rows == {path.name: path.stat().st_mtime_ns for path in methods.iterdir() if path.stem in CHEAP}
    assert json.loads((methods / "random_heads-gaps.json").read_text(encoding="utf-8")) == gaps
    for record in (first, again):
        record.pop("stages")
    assert first == again  # the sealed images were not opened again
    invoke("repair", run, "--out", tmp_path / "another", "--no-reaudit", "--no-report")
    opened = [r["certificates"][0]["certificate"]["sealed_openings"] for r in (again, record_of(tmp_path / "another"))]
    assert opened[1] == opened[0] + 1  # of every repair it counts
    (weights,) = (out / "weights").glob(f"{again['recommended']}.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (out / "certificates.json").unlink()
    said = invoke("repair", run, "--out", out, "--no-reaudit", "--no-report")
    assert said.exit_code == ExitCode.BAD_INPUT
    assert "has changed since it was written" in said.stderr


@pytest.mark.long
def test_every_seeds_model_is_certified_by_weights_of_its_own(invoke: Invoke, tmp_path: Path) -> None:
    rendered = {"train_images": 400, "audit_images": 160, "association": 0.9}
    card = write_card(
        tmp_path / "card.yaml",
        data={"reader": "synthetic", "rendered": rendered, "shares": SHARES},
        training={"seeds": [0, 1]},
        repair={"methods": ["untouched", "global_threshold"], "gap_margin": 0.5, "accuracy_margin": 0.5},
    )
    invoke("run", card, "--out", tmp_path / "runs", "--no-report")
    (run,) = (tmp_path / "runs").iterdir()
    command = ("repair", run, "--out", tmp_path / "repair", "--no-reaudit", "--no-report")
    invoke(*command)
    first = record_of(tmp_path / "repair")
    assert len(first["certificates"][0]["certificate"]["by_seed"]) == len(first["started_from"]) == 2
    weights, certificates = (
        tmp_path / "repair" / "weights" / "global_threshold-seed-1.safetensors",
        tmp_path / "repair" / "certificates.json",
    )
    judged, kept, made = certificates.read_text(encoding="utf-8"), weights.read_bytes(), weights.stat().st_mtime_ns
    certificates.unlink()
    invoke(*command)
    assert weights.stat().st_mtime_ns == made  # what is stored is not done again
    (again,) = json.loads(certificates.read_text(encoding="utf-8"))["certificates"]
    (before,) = json.loads(judged)["certificates"]
    assert again["certificate"]["lines"] == before["certificate"]["lines"]
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    certificates.unlink()
    said = invoke(*command)
    assert said.exit_code == ExitCode.BAD_INPUT
    assert "global_threshold-seed-1.safetensors: has changed since it was written" in said.stderr


def test_another_plan_for_the_same_folder_is_refused(held_back_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    run, out = held_back_run.folder, tmp_path / "repair"
    common = ("repair", run, "--out", out, "--no-reaudit", "--no-report")
    invoke(*common, "--method", "untouched")
    before = {path: file_hash(path) for path in out.rglob("*.json")}
    said = invoke(*common, "--method", "global_threshold")
    assert said.exit_code == ExitCode.BAD_INPUT
    assert (
        said.stderr.strip().splitlines()[-1].endswith("holds a repair that was planned otherwise; name another --out")
    )
    assert before == {path: file_hash(path) for path in out.rglob("*.json")}


def test_the_audited_model_alone_is_no_repair(held_back_run: Run, tmp_path: Path) -> None:
    opened = count_openings(held_back_run.folder)
    found = va.repair(held_back_run.folder, tmp_path / "repair", methods=["untouched"], report=False)
    assert (found.state, found.exit_code) == (RepairState.NO_METHOD_HELPS, ExitCode.TOO_LITTLE_DATA)
    assert (found.weights, found.certificate, len(found.lines)) == (None, None, 0)
    assert count_openings(held_back_run.folder) == opened


def test_a_repaired_file_is_a_model_of_its_own(held_back_run: Run, tmp_path: Path) -> None:
    found = va.repair(
        held_back_run.folder, tmp_path / "repair", methods=["global_threshold"], report=False, reaudit=False
    )
    assert found.weights is not None
    card = yaml.safe_load((held_back_run.folder / "card.yaml").read_text(encoding="utf-8"))
    model = card["model"] | {"weights": str(found.weights), "classes": ["neutral", "smiling"]}
    repaired = va.load_model(model)
    assert repaired.classes == ("neutral", "smiling")
    assert va.open_repair(found.folder).record == found.record


def test_without_images_that_were_held_back_nothing_is_certified(
    small_run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    out = tmp_path / "repair"
    said = invoke("repair", small_run.folder, "--out", out, "--method", "global_threshold", "--no-report")
    record = record_of(out)
    assert (said.exit_code, record["state"]) == (ExitCode.TOO_LITTLE_DATA, RepairState.NOT_CERTIFIABLE)
    assert record["plan"]["fitted_on"] == "audited"
    assert "No images were held back for the repair" in " ".join(said.stdout.split())


@pytest.mark.parametrize(
    ("named", "line"),
    [
        (("--method", "magic"), "methods: "),
        (("--sealed", "none.csv"), "none.csv: no such table; correct --sealed"),
        (("--card", "none.yaml"), "none.yaml"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    small_run: Run, invoke: Invoke, tmp_path: Path, named: tuple[str, str], line: str
) -> None:
    said = invoke("repair", small_run.folder, "--out", tmp_path / "repair", *named)
    assert said.exit_code == ExitCode.BAD_INPUT
    assert line in said.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "repair").exists()


def test_a_repair_may_not_lie_in_the_run_whose_weights_it_reads(small_run: Run, invoke: Invoke) -> None:
    before = {path: file_hash(path) for path in small_run.folder.rglob("*") if path.is_file()}
    said = invoke("repair", small_run.folder, "--out", small_run.folder / "models", "--method", "untouched")
    assert said.exit_code == ExitCode.BAD_INPUT
    assert "is in the run directory" in said.stderr.strip().splitlines()[-1]
    assert before == {path: file_hash(path) for path in small_run.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["seed-0", "balanced-0"])
def test_weights_that_changed_since_the_run_are_refused(
    small_run: Run, invoke: Invoke, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    va.open_run(small_run.folder).save(run)
    path = run / "models" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = invoke("repair", run, "--out", tmp_path / "repair", "--method", "untouched")
    assert said.exit_code == ExitCode.BAD_INPUT
    assert f"{name}.safetensors: has changed since the run; restore it, or audit again" in said.stderr


def test_every_method_is_said_in_words() -> None:
    words = yaml.safe_load((Path(__file__).parents[2] / "templates/words.yaml").read_text(encoding="utf-8"))["repair"]
    assert set(words["methods"]) == set(Method)
    assert set(words["not_offered"]) == set(WhyNotOffered)
    assert set(words["states"]) == set(RepairState)


def test_other_peoples_images_of_a_table_are_a_sealed_split(named_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    known = pd.read_csv(named_run.card.parent.parent / "faces.csv")
    source = SyntheticSource(faces := sample_faces(120, 99, split="sealed"))
    rows = []
    for number, face in enumerate(faces.itertuples()):
        file = tmp_path / "others" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        source.open(face.image).save(file)
        asked = {"expression": face.expression, "tone": face.skin_tone, "by": known["by"][0], "years": 30}
        rows.append({"file": file.relative_to(tmp_path).as_posix(), "who": f"other {number}", **asked})
    pd.DataFrame(rows).to_csv(tmp_path / "others.csv", index=False)
    common = ("repair", named_run.folder, "--method", "global_threshold", "--no-report", "--no-reaudit")
    said = invoke(*common, "--out", tmp_path / "repair", "--sealed", tmp_path / "others.csv")
    assert said.exit_code != ExitCode.BAD_INPUT, said.stderr
    record = record_of(tmp_path / "repair")
    assert said.exit_code == record["exit_code"], said.output
    assert record["plan"]["sealed_from"] == "table"
    if record["recommended"]:
        assert record["certificates"][0]["certificate"]["images"] == 120
    assert count_openings(named_run.folder) == 0  # these are another table's
    assert count_openings(named_run.folder, table=record["plan"]["sealed_table"]) == bool(record["recommended"])
    again = named_run.card.parent.parent / "some-of-them.csv"
    known.head(40).to_csv(again, index=False)
    said = invoke(*common, "--out", tmp_path / "other", "--sealed", again)
    assert said.exit_code == ExitCode.BAD_INPUT
    assert "of the audit are in it" in said.stderr
