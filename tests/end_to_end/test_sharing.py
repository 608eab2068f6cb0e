"""People: no image of anybody in a run, and a copy to hand on that names nobody and is verified all the same."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pikepdf
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from audit.exit_codes import ExitCode
from audit.records import DataWarningCode
from audit.report import load_audit
from audit.report.figures import SQUARE
from audit.report.manifest import sign
from audit.report.page import Page
from audit.report.render import read_run
from audit.report.reviews import read_decisions
from audit.report.shareable import MARK
from tests.end_to_end.conftest import ANNOTATORS, FIRST, LAST, Invoke, Run
from tests.end_to_end.words import ADDRESS, files_of, words_of
from tests.small_world import without_pdf

pytestmark = pytest.mark.end_to_end
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P6", b"P5")


@pytest.fixture(params=["small_run", "named_run"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a run of drawings, then one of image files."""
    found: Run = request.getfixturevalue(request.param)
    return found


# No image


def is_map_of_squares(image: Image.Image) -> bool:
    """Tell whether a picture is a grid of plain squares, as a map of attention is: an average over images."""
    pixels = np.asarray(image.convert("RGB"))
    small = pixels[::SQUARE, ::SQUARE]
    return max(small.shape[:2]) <= 64 and bool((np.kron(small, np.ones((SQUARE, SQUARE, 1))) == pixels).all())


def control_images(run: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the images of controls that a report shows: rendered from the record, so of nobody."""
    shown = Page(load_audit(run / "audit.json"), "0" * 64).control_examples()
    found = [base64.b64decode(picture.light.partition(",")[2]) for picture in shown]
    return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in found]


def is_plain(image: Image.Image, rendered: Sequence[npt.NDArray[np.uint8]]) -> bool:
    """Tell whether a picture is a map of squares, or one of the rendered ones."""
    pixels = np.asarray(image.convert("RGB"))
    return any(np.array_equal(pixels, other) for other in rendered) or is_map_of_squares(image)


def charts_of(page: bytes, rendered: Sequence[npt.NDArray[np.uint8]]) -> Iterator[None]:
    """Assert of every picture in a page that it is a drawing of lines, a map of squares, or a control image."""
    assert b"<image" not in page
    for kind, content in ADDRESS.findall(page):
        plain = base64.b64decode(content)
        if kind == b"svg+xml":
            assert b"<image" not in plain
            assert b"data:" not in plain
        else:
            assert kind == b"png"
            assert is_plain(Image.open(io.BytesIO(plain)), rendered)
        yield None


def test_no_image_is_in_a_run_but_the_charts_of_its_report(run: Run) -> None:
    rendered = control_images(run.folder)
    for name, content in files_of(run.folder).items():
        assert not content.startswith(PICTURES), name
        if name.endswith(".html"):
            assert len(list(charts_of(content, rendered))) >= (3 if name == "report.html" else 0)
            assert set(re.findall(rb"data:([a-z/]+)", content)) <= {b"image/svg", b"image/png"}
        elif name.endswith(".pdf"):
            with pikepdf.open(io.BytesIO(content)) as pdf:
                streams = [o for o in pdf.objects if isinstance(o, pikepdf.Stream) and o.get("/Subtype") == "/Image"]
                assert all(is_plain(pikepdf.PdfImage(picture).as_pil_image(), rendered) for picture in streams)
        elif name.endswith(".parquet"):
            kinds = {str(field.type) for field in pq.read_schema(io.BytesIO(content))}
            assert kinds <= {"int64", "int16", "double", "float", "string", "large_string", "bool"}, kinds
        elif name.endswith(".npz"):
            held = np.load(io.BytesIO(content), allow_pickle=False)
            parts = [held[part] for part in held.files]
            assert all((p.dtype.kind in "fi" and p.ndim <= 3) or (p.dtype.kind == "U" and p.ndim == 0) for p in parts)
        elif name.endswith(".safetensors"):
            with safe_open(run.folder / name, framework="pt") as opened:
                assert not any(opened.get_tensor(key).dtype.itemsize == 1 for key in opened.keys())  # noqa: SIM118
        else:
            content.decode("utf-8")


def test_neither_a_file_nor_a_row_of_pixels_of_an_image_is_in_a_run(named_run: Run, named_folder: Path) -> None:
    everything = b"\0".join(files_of(named_run.folder).values())
    for path in sorted(named_folder.rglob("*.png"))[:20]:
        content = path.read_bytes()
        assert content[40:] not in everything
        if content.startswith(b"\x89PNG"):
            assert np.asarray(Image.open(path).convert("RGB"))[32].tobytes() not in everything


# A copy to hand on


@pytest.fixture(scope="module")
def shared(named_run: Run, invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the run of people whose names are known, once."""
    out = tmp_path_factory.mktemp("shared") / "copy"
    before = files_of(named_run.folder)
    result = invoke("export", named_run.folder, out, "--shareable")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith(f"copy: {out}; check it: vit-audit verify ")
    assert files_of(named_run.folder) == before
    return out


def test_the_run_itself_names_people_and_its_copy_nobody(named_run: Run, shared: Path, named_folder: Path) -> None:
    own, copied = words_of(named_run.folder), words_of(shared)
    people = [*FIRST, *LAST, *(f"{f} {n}" for f in FIRST for n in LAST), *ANNOTATORS, "Quimby", "people/", ".png"]
    assert sum(name in own for name in people) > 90
    assert [name for name in people if name in copied] == []
    for folder in (named_folder, named_run.out, Path.home(), Path.cwd()):
        assert str(folder) not in copied
    assert "faces.csv" in copied  # which table it was is no secret


def test_warnings_and_examples_keep_their_sense(named_run: Run, shared: Path) -> None:
    """Each kind of name that a record holds was in this one, and only the names are gone."""
    before, after = (json.loads((run / "audit.json").read_text())["data"] for run in (named_run.folder, shared))
    codes = {w["code"]: w for w in before["warnings"]}
    assert codes[DataWarningCode.SUBJECT_IN_SEVERAL_GROUPS]["subjects"]
    assert codes[DataWarningCode.NEAR_COPIES]["examples"]
    assert set(codes[DataWarningCode.LABELS_BY_COLUMN]["values"]) <= set(ANNOTATORS)
    other = r"(?:image|subject|value)-[0-9a-f]{20}"
    named = ("examples", "subjects", "values")
    for was, now in zip(before["warnings"], after["warnings"], strict=True):
        assert {k: v for k, v in was.items() if k not in named} == {k: v for k, v in now.items() if k not in named}
        for part in named:
            assert len(now[part]) == len(was[part])
            assert all(re.fullmatch(other, name) for name in now[part])
    for part in ("excluded", "quarantined"):
        assert before[part]
        for was, now in zip(before[part], after[part], strict=True):
            assert (was["kind"], was["images"]) == (now["kind"], now["images"])
            assert all(re.fullmatch(other, example) for example in now["examples"])
            assert len(now["examples"]) == len(was["examples"])


def test_a_copy_of_drawings_is_verified_and_every_number_is_the_runs(
    small_run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    with without_pdf():
        assert invoke("export", small_run.folder, tmp_path / "copy", "--shareable").exit_code == 0
    check_copy(small_run, tmp_path / "copy", invoke)


def test_a_copy_of_people_is_verified_and_every_number_is_the_runs(
    named_run: Run, shared: Path, invoke: Invoke
) -> None:
    check_copy(named_run, shared, invoke)


def check_copy(run: Run, out: Path, invoke: Invoke) -> None:
    """Assert that a copy is verified, says what it lacks, and holds every number of the run."""
    with without_pdf():  # that of a copy is verified with the sample
        result = invoke("verify", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("shareable copy: under other names: ")
    assert "left out, so that nothing derives from them: models/" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("verified: ")
    before, after = (json.loads((folder / "audit.json").read_text()) for folder in (run.folder, out))
    for record in (before, after):
        record.pop("owner")
        for part in ("source", "warnings", "excluded", "quarantined"):
            record["data"].pop(part)
        for row in record["data"]["label_shares"]:
            row["value"] = re.sub(r"value-[0-9a-f]{20}|" + "|".join(ANNOTATORS), "@", row["value"])
        record["method"].pop("preregistration_sha256")
        for part in ("command", "run_by"):
            record["provenance"].pop(part)
        for part in ("card", "preregistration"):
            record["provenance"]["hashes"].pop(part)
    assert after == before


@pytest.mark.usefixtures("no_pdf")
def test_a_number_changed_in_the_copy_is_found(shared: Path, invoke: Invoke, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shared, copy)
    record = json.loads((copy / "audit.json").read_text())
    record["rates"][0]["selection_rate"]["value"] += 0.01
    (copy / "audit.json").write_text(json.dumps(record))
    (copy / "models").mkdir()
    (copy / "models" / "seed-0.safetensors").write_bytes(b"")
    result = invoke("verify", copy)
    assert result.exit_code == ExitCode.NOT_VERIFIED
    assert "rates[0].selection_rate.value: is " in result.stdout or "cannot be derived" in result.stdout
    assert f"models/seed-0.safetensors: is here, and {MARK} says that it was left out" in result.stdout
    (copy / MARK).write_text("{")
    assert f"{MARK}: damaged" in invoke("verify", copy).stdout


@pytest.mark.usefixtures("no_pdf")
def test_equal_names_stay_equal_and_two_copies_have_nothing_in_common(
    named_run: Run, shared: Path, invoke: Invoke, tmp_path: Path
) -> None:
    assert invoke("export", named_run.folder, tmp_path / "again", "--shareable").exit_code == 0
    folders = (named_run.folder, shared, tmp_path / "again")
    own, first, second = (pd.read_parquet(folder / "effects" / "samples.parquet") for folder in folders)
    for column in ("image", "subject", "by"):
        codes = [pd.factorize(table[column])[0].tolist() for table in (own, first, second)]
        assert codes[0] == codes[1] == codes[2]
        assert len({*own[column]} | {*first[column]} | {*second[column]}) == 3 * own[column].nunique()
    plain = ["label", "split", "skin_tone", "years"]
    pd.testing.assert_frame_equal(own[plain], first[plain])
    swaps = [pd.read_parquet(folder / "effects" / "swap-seed-0.parquet") for folder in folders]
    numbers = swaps[0].select_dtypes("number").columns
    assert len(swaps[0]) > 0
    pd.testing.assert_frame_equal(swaps[0][numbers], swaps[1][numbers])
    assert (swaps[1]["image"] == first["image"].loc[swaps[1]["recipient"]].to_numpy()).all()


@pytest.mark.usefixtures("no_pdf")
def test_the_key_is_written_nowhere(
    named_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = hashlib.sha256(b"a key").digest()
    monkeypatch.setattr("audit.report.pseudonyms.secrets.token_bytes", lambda _n: key)
    assert invoke("export", named_run.folder, tmp_path / "copy", "--shareable").exit_code == 0
    for name, content in files_of(tmp_path / "copy").items():
        for form in (key, key.hex().encode(), base64.b64encode(key)):
            assert form not in content, name


@pytest.mark.usefixtures("no_pdf")
def test_decisions_go_along_without_the_names_of_reviewers(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run.folder, run)
    source = read_run(run)
    told = {"finding": source.audit.findings[0].id, "role": "compliance", "decided": "2026-03-02T10:00:00Z"}
    decisions = [
        {**told, "decision": "needs more", "name": "Perpetua Quill", "reason": "look at discovery-00002 first"},
        {**told, "decision": "accept", "name": "Rufus Yarrow", "reason": "seen", "owner": "Otto Yarrow",
         "remedy": "look at discovery-00002 again", "due": "2026-06-30"},
        {**told, "decision": "reject", "name": "Perpetua Quill", "reason": "seen again"},
    ]  # fmt: skip
    review = tmp_path / "review.json"
    review.write_text(json.dumps({"audit_sha256": source.digest, "decisions": decisions}))
    assert invoke("review", run, review).exit_code == 0
    assert invoke("export", run, tmp_path / "copy", "--shareable").exit_code == 0
    copied = read_run(tmp_path / "copy")
    assert [d.name for d in read_decisions(tmp_path / "copy", copied.digest)] == [
        "reviewer 1",
        "reviewer 2",
        "reviewer 1",
    ]
    assert re.fullmatch(r"look at image-\w{20} first", copied.decisions[0].reason)
    asked = copied.decisions[1]
    assert (asked.owner, asked.due) == ("owner 1", "2026-06-30")
    assert re.fullmatch(r"look at image-\w{20} again", asked.remedy)
    assert not re.search("Quill|Yarrow|discovery-00002", words_of(tmp_path / "copy"))
    assert invoke("verify", tmp_path / "copy").exit_code == 0


@pytest.mark.usefixtures("no_pdf")
def test_models_go_along_where_they_are_asked_for(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert invoke("export", small_run.folder, out, "--shareable", "--models").exit_code == 0
    assert {p.name for p in (out / "models").iterdir()} == {p.name for p in (small_run.folder / "models").iterdir()}
    assert invoke("verify", out).exit_code == 0
    finding = next(f for f in small_run.record["findings"] if f["kind"] == "head")
    assert invoke("reproduce", out, finding["id"]).exit_code == 0


@pytest.mark.usefixtures("no_pdf")
def test_a_copy_is_not_measured_in_and_not_matched_by_name(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "runs" / small_run.folder.name
    assert invoke("export", small_run.folder, out, "--shareable").exit_code == 0
    before = files_of(out)
    again = invoke("run", small_run.card, "--out", out.parent)
    assert again.exit_code == 2
    assert "is a shareable copy, in which images have other names; name another --out" in again.stderr
    finding = small_run.record["findings"][0]["id"]
    refused = invoke("reproduce", out, finding)
    assert (refused.exit_code, "models/seed-0.safetensors: missing; restore it" in refused.stderr) == (2, True)
    compared = invoke("diff", small_run.folder, out, "--out", tmp_path / "diff")
    assert compared.exit_code == 0, compared.output
    assert "Not compared image by image: " in compared.stdout
    assert files_of(out) == before


def test_what_cannot_be_copied_is_refused_and_leaves_nothing(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out, words in (
        (tmp_path / "there", "exists already"),
        (small_run.folder / "copy", "lies in the run that is copied"),
    ):
        result = invoke("export", small_run.folder, out, "--shareable")
        assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert invoke("export", small_run.folder, tmp_path / "copy").stderr.startswith("export: what may be handed on was")
    run = tmp_path / "run"
    shutil.copytree(small_run.folder, run)
    (run / "log.jsonl").write_text("changed")
    changed = invoke("export", run, tmp_path / "copy", "--shareable")
    assert (changed.exit_code, "log.jsonl: is not as manifest.json has it" in changed.stderr) == (2, True)
    shutil.copy(small_run.folder / "log.jsonl", run)
    (run / MARK).write_text("{}")
    assert "is a shareable copy already" in invoke("export", run, tmp_path / "copy", "--shareable").stderr
    assert {p.name for p in tmp_path.iterdir()} == {"there", "run"}
    assert not (small_run.folder / "copy").exists()


@pytest.mark.usefixtures("no_pdf")
def test_a_full_disk_leaves_no_half_copy(
    small_run: Run, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_run: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "manifest.json")

    monkeypatch.setattr("audit.report.shareable.write_manifest", full)
    result = invoke("export", small_run.folder, tmp_path / "copy", "--shareable")
    assert result.exit_code == 5
    assert result.stderr.startswith("manifest.json: No space left on device; make room")
    refused = invoke("export", small_run.folder, small_run.folder / "audit.json" / "copy", "--shareable")
    assert (refused.exit_code, "Traceback" in refused.output) == (2, False)
    assert invoke("export", small_run.folder, small_run.card / "copy", "--shareable").exit_code == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pdf")
def test_a_copy_is_signed_again(small_run: Run, invoke: Invoke, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = tmp_path / "key.pem"
    private = Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    run = tmp_path / "run"
    shutil.copytree(small_run.folder, run)
    sign(run, key)
    result = invoke("export", run, tmp_path / "copy", "--shareable")
    assert "signatures, which are of the run's own manifest and PDF" in " ".join(result.stdout.split())
    assert not (tmp_path / "copy" / "manifest.dsse.json").exists()
    assert invoke("sign", tmp_path / "copy", "--key", key).exit_code == 0
