"""What a reviewer does with a finished run: verify it, decide, sign, and compare it with another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pikepdf
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from audit.exit_codes import ExitCode
from audit.pipeline.derive import preregistration_faults
from audit.records import RunComparison
from audit.report.manifest import MANIFEST, write_manifest
from audit.report.render import Source, read_run
from tests.end_to_end.conftest import Invoke, Run, write_card
from tests.small_world import without_pdf

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def copy(small_run: Run, tmp_path: Path) -> Path:
    """Copy the small run, so that it can be tampered with."""
    folder = tmp_path / small_run.folder.name
    shutil.copytree(small_run.folder, folder)
    return folder


def printed_to_fit(copy: Path, invoke: Invoke) -> None:
    """Print everything from an edited record and hash it, as somebody would who wants nothing to show."""
    refused = invoke("render", copy)
    assert refused.exit_code == 2
    assert "audit.json: was changed after manifest.json was written" in refused.stderr
    (copy / MANIFEST).unlink()
    assert invoke("render", copy).exit_code == 0


@pytest.mark.usefixtures("no_pdf")
def test_a_run_as_it_was_written_is_verified_whatever_it_is_called(copy: Path, invoke: Invoke) -> None:
    copy = copy.rename(copy.with_name("renamed"))
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    result = invoke("verify", copy)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"verified: {len(before) - 1} files, ")
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


DERIVED = ("swap-seed-0.parquet", "control-blur.npz", "seed-0.safetensors")  # one of each kind


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_one_changed_byte_in_any_file_is_named(
    every: bool, copy: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are derived while a file of effects or models is damaged: one of each kind, or, as is long, every one."""
    monkeypatch.setattr("audit.pipeline.print_again.printed", lambda _source, **_named: {})  # hashes alone must suffice
    files = [p for p in copy.rglob("*") if p.is_file()]
    derived = [p for p in files if p.name in DERIVED or (every and p.parent.name in ("effects", "models"))]
    assert len(derived) >= len(DERIVED)
    for path in sorted(files, key=lambda p: p not in derived):
        if path not in derived:
            monkeypatch.setattr("audit.pipeline.derive.derive", lambda _run, _audit: {})
        whole = path.read_bytes()
        at = len(whole) // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        result = invoke("verify", copy)
        name = path.relative_to(copy).as_posix()
        assert result.exit_code == ExitCode.NOT_VERIFIED, name
        assert name in result.output or path.name in result.output, result.output
        path.write_bytes(whole)
    assert invoke("verify", copy).exit_code == 0


def test_what_was_fixed_beforehand_is_compared_as_a_card(copy: Path) -> None:
    path, audit = copy / "preregistration.json", read_run(copy).audit
    fixed = json.loads(path.read_text(encoding="utf-8"))
    del fixed["card"]["data"]["download"]  # as before there was such a field
    path.write_text(json.dumps(fixed), encoding="utf-8")
    assert list(preregistration_faults(copy, audit)) == []
    fixed["card"]["audit"]["alpha"] = 0.04
    for content in (json.dumps(fixed), '{"card": 3}', "[]", "{", "[" * 100_000):
        path.write_text(content, encoding="utf-8")
        assert [str(f) for f in preregistration_faults(copy, audit) if "is not the card" in str(f)], content[:20]


@pytest.mark.usefixtures("no_pdf")
def test_files_that_are_missing_or_too_many_are_named(copy: Path, invoke: Invoke) -> None:
    (copy / "tables" / "rates.csv").unlink()
    (copy / "notes.txt").write_text("more", encoding="utf-8")
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert "tables/rates.csv: missing, but in manifest.json" in result.stdout
    assert "notes.txt: not in manifest.json" in result.stdout


@pytest.mark.usefixtures("no_pdf")
def test_one_edited_number_is_named_though_all_hashes_were_made_to_fit(copy: Path, invoke: Invoke) -> None:
    """Whoever edits a page can also write a new manifest; what the effects and the record give stays."""
    page = (copy / "report.html").read_text(encoding="utf-8")
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    shown = f"{100 * record['rates'][0]['selection_rate']['value']:.1f}%"
    (copy / "report.html").write_text(page.replace(shown, "12.3%", 1), encoding="utf-8")
    write_manifest(copy)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    (line,) = [x for x in result.stdout.splitlines() if x.startswith("report.html")]
    assert "12.3%" in line
    assert shown in line
    assert "1 fault in" in result.stdout


def test_an_edited_page_of_the_pdf_is_named(copy: Path, invoke: Invoke) -> None:
    with pikepdf.open(copy / "report.pdf", allow_overwriting_input=True) as pdf:
        page = pdf.pages[2]
        parts = pikepdf.parse_content_stream(page)
        page.Contents = pdf.make_stream(pikepdf.unparse_content_stream(parts[:-1]))
        pdf.save()
    write_manifest(copy)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert "report.pdf: page 3 is not what audit.json prints" in result.stdout


@pytest.mark.usefixtures("no_pdf")
def test_an_edited_figure_of_the_record_is_named(copy: Path, invoke: Invoke) -> None:
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    record["heads"][2]["confirmation"]["value"] += 0.001
    (copy / "audit.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    printed_to_fit(copy, invoke)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert "audit.json, heads[2].confirmation.value: is " in result.stdout
    assert "1 fault in" in result.stdout


def test_decisions_are_merged_shown_and_verified(copy: Path, invoke: Invoke, tmp_path: Path) -> None:
    source = read_run(copy)
    finding = source.audit.findings[0].id
    review = {
        "review_version": "1.0", "audit_sha256": source.digest,
        "decisions": [{"finding": finding, "decision": "needs more", "name": "R. Reader", "role": "compliance",
                       "reason": "which images move most?", "decided": "2026-03-02T10:00:00.123Z"}],
    }  # fmt: skip
    path = tmp_path / "review.json"
    path.write_text(json.dumps(review), encoding="utf-8")
    result = invoke("review", copy, path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 decisions added, 1 in all")
    assert "which images move most?" in (copy / "report.html").read_text(encoding="utf-8")
    assert invoke("verify", copy).exit_code == 0
    with without_pdf():
        check_second_review(copy, invoke, path, review)


def check_second_review(copy: Path, invoke: Invoke, path: Path, review: dict[str, Any]) -> None:
    """Assert that a review is added once, and none to a record that was changed or to that of another audit."""
    assert invoke("review", copy, path).stdout.startswith("0 decisions added, 1 in all")
    whole = (copy / "audit.json").read_bytes()
    (copy / "audit.json").write_bytes(whole.replace(b"smiling", b"smilimg", 1))
    corrupted = invoke("verify", copy)
    assert corrupted.exit_code == ExitCode.NOT_VERIFIED
    assert "audit.json: changed: its SHA-256 is not that of manifest.json" in corrupted.stdout
    (copy / "audit.json").write_bytes(whole)
    path.write_text(json.dumps({**review, "audit_sha256": "0" * 64}), encoding="utf-8")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    refused = invoke("review", copy, path)
    assert refused.exit_code == 2
    assert "is of another audit" in refused.stderr
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def accepted(source: Source, folder: Path, reason: str) -> Path:
    """Write a review that accepts the first finding."""
    decision = {
        "finding": source.audit.findings[0].id, "decision": "accept", "name": "R.", "role": "c.", "reason": reason,
        "decided": "2026-03-02T10:00:00Z",
    }  # fmt: skip
    path = folder / "review.json"
    path.write_text(json.dumps({"audit_sha256": source.digest, "decisions": [decision]}), encoding="utf-8")
    return path


@pytest.mark.usefixtures("no_pdf")
def test_running_the_card_again_leaves_a_reviewed_run_as_it_is(
    small_run: Run, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    source = read_run(copy)
    path = accepted(source, tmp_path, "seen")
    assert invoke("review", copy, path).exit_code == 0
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    result = invoke("run", small_run.card, "--out", copy.parent)
    assert result.exit_code == small_run.result.exit_code, result.output
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    record["findings"][0]["group"] = "something else"
    (copy / "audit.json").write_text(json.dumps(record), encoding="utf-8")
    refused = invoke("run", small_run.card, "--out", copy.parent)
    assert (refused.exit_code, "was reviewed, and would now say something else" in refused.stderr) == (2, True)


@pytest.mark.usefixtures("no_pdf")
def test_a_control_that_was_left_out_of_the_record_is_missed(copy: Path, invoke: Invoke) -> None:
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    rows = record["controls"]["controls"]
    record["controls"]["controls"] = [c for c in rows if c["id"] != "colour_null_untrained"]
    assert len(record["controls"]["controls"]) == len(rows) - 1
    record["intended_use"] = "anything"
    (copy / "audit.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    printed_to_fit(copy, invoke)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert f"audit.json, controls.controls: is {len(rows) - 1} rows, effects give {len(rows)} rows" in result.stdout
    assert "audit.json, intended_use: is 'anything', effects give ''" in result.stdout


@pytest.mark.usefixtures("no_pdf")
def test_controls_of_the_models_are_judged_again_from_their_numbers(copy: Path, invoke: Invoke) -> None:
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    rows = record["controls"]["controls"]
    place = {c["id"]: number for number, c in enumerate(rows)}
    (gate,) = (c for c in rows if c["id"] == "heads_match:colour models")
    rows[place["engine"]]["estimate"]["value"] /= 2
    rows[place["live_sites"]]["threshold"] = -1.0
    rows.remove(gate)
    rows.append({**rows[place["self_patch"]], "id": "invented"})
    (copy / "audit.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    printed_to_fit(copy, invoke)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert f"controls.controls[{place['engine']}].estimate.value: is " in result.stdout
    assert f"controls.controls[{place['live_sites']}].threshold: is -1.0, effects give 0.0" in result.stdout
    assert f"controls.controls[{len(rows) - 1}].passed: is True, effects give False" in result.stdout
    assert "lacks 'heads_match:colour models', of which effects/controls.parquet holds numbers" in result.stdout
    assert "audit.json, controls.valid: is True, effects give False" in result.stdout


def moved_gate(record: dict[str, Any]) -> None:
    for control in record["controls"]["controls"]:
        control["gates"] = "Design C" if control["id"] == "engine" else control["gates"]


def said_twice(record: dict[str, Any]) -> None:
    rows = record["controls"]["controls"]
    rows.append(dict(rows[0]))


def looser(record: dict[str, Any]) -> None:
    record["method"]["thresholds"]["policy.gap_above"] = 0.9
    record["method"]["permutations"] = 1_000_000


def another_model(record: dict[str, Any]) -> None:
    record["provenance"]["hashes"]["model seed 0"] = "0" * 64


def larger(record: dict[str, Any]) -> None:
    record["model"]["parameters"] += 1


def more_images(record: dict[str, Any]) -> None:
    record["controls"]["controls"][0]["n"] = 100_000


def invalid_and_talking(record: dict[str, Any]) -> None:
    record["controls"]["controls"][0]["passed"] = False
    record["controls"]["valid"] = False
    record["outcome"], record["exit_code"] = "INVALID", 3


@pytest.mark.usefixtures("no_pdf")
@pytest.mark.parametrize(
    ("forged", "named"),
    [
        (moved_gate, ".gates: is 'Design C', effects give 'audit'"),
        (said_twice, "audit.json, controls: has '"),
        (looser, "method.thresholds.policy.gap_above: is 0.9"),
        (another_model, "provenance.hashes.model seed 0: is '0000"),
        (larger, "model.parameters: is "),
        (more_images, "controls.controls[0].n: is 100000"),
        (invalid_and_talking, "outcome: is 'INVALID'"),
    ],
)
def test_what_a_record_says_of_itself_is_not_believed(
    forged: Callable[[dict[str, Any]], None], named: str, copy: Path, invoke: Invoke
) -> None:
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    forged(record)
    (copy / "audit.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    printed_to_fit(copy, invoke)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert named in " ".join(result.stdout.split())


@pytest.mark.usefixtures("no_pdf")
def test_a_run_that_failed_its_controls_may_say_nothing_about_groups(copy: Path, invoke: Invoke) -> None:
    """The numbers behind a control are made to fail, and the record with them; the rates stay in it."""
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    numbers = pd.read_parquet(copy / "effects" / "controls.parquet")
    numbers.loc[numbers["control"] == "self_patch", "number"] = 1.0
    numbers.to_parquet(copy / "effects" / "controls.parquet")
    (control,) = (c for c in record["controls"]["controls"] if c["id"] == "self_patch")
    control |= {"passed": False, "estimate": {**control["estimate"], "value": 1.0}}
    invalid_and_talking(record)
    record["controls"]["controls"][0]["passed"] = record["controls"]["controls"][0]["id"] != "self_patch"
    (copy / "audit.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    printed_to_fit(copy, invoke)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    for what in ("rates", "contrasts", "heads", "findings"):
        assert f"audit.json, {what}: is {len(record[what])} rows, effects give 0 rows" in result.stdout


@pytest.mark.usefixtures("no_pdf")
def test_a_review_does_not_hash_away_what_was_tampered_with(copy: Path, invoke: Invoke, tmp_path: Path) -> None:
    source = read_run(copy)
    (copy / "log.jsonl").write_text("", encoding="utf-8")
    (copy / "evil.txt").write_text("x", encoding="utf-8")
    path = accepted(source, tmp_path, "seen")
    assert invoke("review", copy, path).exit_code == 0
    assert invoke("render", copy).exit_code == 0
    result = invoke("verify", copy)
    assert "log.jsonl: changed" in result.stdout
    assert "evil.txt: not in manifest.json" in result.stdout
    assert "2 faults" in result.stdout


@pytest.mark.usefixtures("no_pdf")
def test_a_review_that_was_cut_short_is_finished_by_the_next(copy: Path, invoke: Invoke, tmp_path: Path) -> None:
    source = read_run(copy)
    path = accepted(source, tmp_path, "cut short")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert invoke("review", copy, path).exit_code == 0
    for file, content in before.items():
        file.write_bytes(content)  # all but the decisions, as if it had been killed after them
    again = invoke("review", copy, path)
    assert again.stdout.startswith("0 decisions added, 1 in all")
    assert "cut short" in (copy / "report.html").read_text(encoding="utf-8")
    assert invoke("verify", copy).exit_code == 0


def test_damaged_effects_keep_runs_from_being_paired_not_from_being_compared(
    small_run: Run, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    for name in ("unpatched.parquet", "swap-seed-0.parquet", "samples.parquet"):
        path = copy / "effects" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        result = invoke("diff", small_run.folder, copy, "--out", tmp_path / "diff")
        assert result.exit_code == 0, result.output
        assert "Not compared image by image" in result.stdout
        path.write_bytes(whole)


@pytest.mark.usefixtures("no_pdf")
def test_pages_of_other_versions_are_not_compared_and_that_is_said(copy: Path, invoke: Invoke) -> None:
    path = copy / "exports" / "printed-with.json"
    versions = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**versions, "matplotlib": "1.0"}, indent=1) + "\n", encoding="utf-8")
    write_manifest(copy)
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    said = f"report: cannot be compared: printed with matplotlib 1.0 (here: {versions['matplotlib']})"
    assert said in " ".join(result.stdout.split())
    assert "1 fault in" in result.stdout
    assert invoke("render", copy).exit_code == 0
    assert invoke("verify", copy).exit_code == 0


@pytest.mark.usefixtures("no_pdf")
def test_a_signed_run_is_verified_with_the_public_key(copy: Path, invoke: Invoke, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    unsigned = invoke("verify", copy, "--key", tmp_path / "public.pem")
    assert (unsigned.exit_code, "there is no signature" in unsigned.stdout) == (ExitCode.NOT_VERIFIED, True)
    assert invoke("sign", copy, "--key", tmp_path / "key.pem").exit_code == 0
    assert invoke("verify", copy, "--key", tmp_path / "public.pem").exit_code == 0
    (copy / "log.jsonl").write_text("", encoding="utf-8")
    (copy / MANIFEST).unlink()
    write_manifest(copy)  # a forger has no key
    assert invoke("verify", copy, "--key", tmp_path / "public.pem").exit_code == ExitCode.NOT_VERIFIED


def test_a_run_beside_itself_has_lost_and_gained_nothing(
    small_run: Run, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    result = invoke("diff", small_run.folder, copy, "--out", tmp_path / "diff")
    assert result.exit_code == 0, result.output
    found = RunComparison.model_validate_json((tmp_path / "diff" / "diff.json").read_bytes())
    assert found.same_images
    assert {f.state for f in found.findings} == {"persisting"}
    assert len(found.findings) == len(small_run.record["findings"])
    for row in found.findings:
        assert row.before == row.after
        assert row.change is not None
        assert (row.change.value, row.p) == (0.0, 1.0)
        assert row.images
    assert "“Below the threshold now” means" in (tmp_path / "diff" / "diff.html").read_text(encoding="utf-8")
    assert (
        {gap.change.value for gap in found.gaps if gap.change}
        == {rate.change.value for rate in found.rates if rate.change}
        == {0.0}
    )
    assert found.before.above_policy == found.after.above_policy is not None


def test_a_finding_that_falls_below_the_threshold_is_told_with_both_numbers_and_the_paired_interval(
    small_run: Run, copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """In the second run four images of the group are called otherwise, and no finding comes of it."""
    record = json.loads((copy / "audit.json").read_text(encoding="utf-8"))
    lost = next(f for f in record["findings"] if f["kind"] == "disparity")
    record["findings"] = [f for f in record["findings"] if f["id"] != lost["id"]]
    asked = "{attribute}:{group}-{reference}:{outcome}:{metric}".format(**lost)
    row = next(c for c in record["contrasts"] if c["id"] == asked)
    before, row["estimate"]["value"], row["above_policy"] = row["estimate"]["value"], 0.01, False
    (copy / "audit.json").write_text(json.dumps(record), encoding="utf-8")
    answers, samples = (pd.read_parquet(copy / "effects" / f"{name}.parquet") for name in ("unpatched", "samples"))
    first = answers["seed"] == answers["seed"].iloc[0]
    members = answers["recipient"].map(samples[lost["attribute"]] == lost["group"]) & first
    turned = answers.index[members & (answers["predicted"] == lost["outcome"])][:4]
    answers.loc[turned, "predicted"] = next(label for label in record["data"]["labels"] if label != lost["outcome"])
    answers.to_parquet(copy / "effects" / "unpatched.parquet")
    result = invoke("diff", small_run.folder, copy, "--out", tmp_path / "diff")
    found = RunComparison.model_validate_json((tmp_path / "diff" / "diff.json").read_bytes())
    finding = next(f for f in found.findings if f.id == lost["id"])
    assert (finding.state, finding.below) == ("below the threshold now", "gap not detected")
    assert finding.change is not None and finding.change.low is not None and finding.change.high is not None
    assert finding.change.low < (finding.change.value or 0.0) < finding.change.high
    sign = -1 if before < 0 else 1
    numbers = [f"{100 * sign * value:.1f}".replace("-", "−") for value in (before, 0.01)]
    line = next(line for line in " ".join(result.stdout.split()).split("F-") if "below the threshold now: " in line)
    assert f"below the threshold now: {numbers[0]} → {numbers[1]} points, difference " in line
    assert "[" in line.split("difference ")[1]
    group = (lost["attribute"], lost["group"], lost["outcome"])
    rate = next(r for r in found.rates if (r.attribute, r.group, r.outcome) == group and r.rate == "selection_rate")
    assert rate.change is not None
    assert rate.change.value == pytest.approx(-len(turned) / members.sum())
    assert rate.images == members.sum()


@pytest.mark.long
def test_another_seed_is_compared_person_by_person(invoke: Invoke, tmp_path: Path) -> None:
    groups = {name: {"column": name, "reference": r} for name, r in (("skin_tone", "lighter"), ("hair_length", "long"))}
    crossed = {"groups": groups, "intersections": [["skin_tone", "hair_length"]]}
    runs = []
    for seed in (0, 5):
        card = write_card(tmp_path / f"{seed}.yaml", training={"seeds": [seed]}, **crossed)
        assert invoke("run", card, "--out", tmp_path / str(seed), "--no-report").exit_code in (0, 1, 4)
        runs += list((tmp_path / str(seed)).iterdir())
    result = invoke("diff", *runs, "--out", tmp_path / "diff")
    assert result.exit_code == 0, result.output
    found = RunComparison.model_validate_json((tmp_path / "diff" / "diff.json").read_bytes())
    rows = [row for row in found.findings if row.change is not None]
    assert any(" x " in row.finding.attribute for row in rows)
    assert any(row.kind == "head" for row in rows)
    for row in rows:
        assert row.before is not None and row.after is not None and row.change is not None and row.p is not None
        change = (row.after.value or 0.0) - (row.before.value or 0.0)
        assert row.change.value == pytest.approx(change, abs=1e-9)
        assert 0 < row.p <= 1


def test_runs_of_other_images_are_not_paired(small_run: Run, named_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("diff", small_run.folder, named_run.folder, "--out", tmp_path / "diff")
    assert result.exit_code == 0, result.output
    found = RunComparison.model_validate_json((tmp_path / "diff" / "diff.json").read_bytes())
    assert not found.same_images
    assert found.findings
    assert all(row.change is None for row in found.findings)
    assert "did not measure the same images" in result.stdout
