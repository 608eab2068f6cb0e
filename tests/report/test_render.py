"""The files of a run: what is written, that it repeats itself, and what a PDF holds."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pdfua
import pikepdf
import pypdf
import pytest

from audit.errors import InputError
from audit.report import load_audit, render_run
from audit.report.html import render_html
from audit.report.pdf import render_pdf
from audit.report.text import Sentences

from .examples import examples, large

pytestmark = pytest.mark.unit
FILES = {"report.html", "report.pdf", "audit.schema.json", "model-card.cdx.json", "junit.xml"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "audit.json").write_text(examples()["single_layer"].model_dump_json(), encoding="utf-8")
    render_run(folder)
    return folder


@pytest.fixture(scope="module")
def reader(run_dir: Path) -> pypdf.PdfReader:
    return pypdf.PdfReader(run_dir / "report.pdf")


def test_rendering_again_gives_the_same_bytes(run_dir: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    written = render_run(run_dir)
    assert {path.name for path in written} >= FILES
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert {path.name for path in (run_dir / "tables").iterdir()} == {
        f"{name}.csv"
        for name in (
            "rates",
            "contrasts",
            "ranges",
            "adjusted",
            "heads",
            "heads_together",
            "ledger",
            "ledger_totals",
            "trained",
            "trained_totals",
            "carried",
            "smallest_sets",
            "where",
            "sensitivity",
            "read_writers",
            "read",
            "read_maps",
            "exact_pairs",
            "agreement",
            "attention",
            "counts",
            "label_shares",
            "accuracy",
            "controls",
            "findings",
            "excluded",
            "detection",
        )
    }


def test_record_round_trips_and_meets_its_schema(run_dir: Path) -> None:
    import jsonschema  # which takes seconds that others need not wait for

    audit = load_audit(run_dir / "audit.json")
    assert audit == examples()["single_layer"]
    schema = json.loads((run_dir / "audit.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for example in examples().values():
        record = json.loads(example.model_dump_json())
        assert list(validator.iter_errors(record)) == []
    assert not validator.is_valid(record | {"outcome": "FINE"})


def test_pdf_holds_outcome_and_findings(run_dir: Path, reader: pypdf.PdfReader) -> None:
    text = " ".join(" ".join(page.extract_text() for page in reader.pages).split())
    audit = load_audit(run_dir / "audit.json")
    assert "DISPARITY FOUND" in " ".join(reader.pages[0].extract_text().split())
    assert "What to do next" in reader.pages[0].extract_text()
    for finding in audit.findings:
        assert finding.id in text
        assert finding.kind == "head" or Sentences(audit).finding("title", finding) in text
    assert f"page 1 of {len(reader.pages)}" in text
    assert f"Audit {audit.audit_id}" in text


def test_pdf_has_bookmarks_language_tags_and_the_record(run_dir: Path, reader: pypdf.PdfReader) -> None:
    titles = [str(item.title) for item in reader.outline if not isinstance(item, list)]
    assert titles[0] == "1 Decision and harm"
    assert [title.split()[0] for title in titles[1:]] == [*map(str, range(2, 12)), *"ABCCDEFGH"]
    assert reader.attachments == {"audit.json": [(run_dir / "audit.json").read_bytes()]}
    root = reader.trailer["/Root"]
    assert root["/Lang"] == "en"
    assert root["/MarkInfo"]["/Marked"]
    assert len(root["/AF"]) == 1
    assert b"<pdfaid:part>3</pdfaid:part>" in root["/Metadata"].get_data().replace(b" ", b"") or (
        b'part="3"' in root["/Metadata"].get_data()
    )


def test_the_pdf_passes_what_can_be_checked_of_pdf_ua(run_dir: Path) -> None:
    """But for the claim itself, which a file should not make that no full validator has seen."""
    report = pdfua.validate(str(run_dir / "report.pdf"))
    assert [f.rule_id for f in report.findings] == ["UA-28-004"]
    assert report.count_by_severity()[pdfua.Severity.ERROR] == 0


def test_the_largest_report_stays_readable() -> None:
    """24 layers of 16 heads, 12 contrasts, 200 findings; `python benchmarks/report/run.py` times it with its PDF."""
    audit = large()
    page, printed = (render_html(audit, "0" * 64, for_print=p) for p in (False, True))
    assert len(page) < 11.2e6
    assert page.count('class="finding"') == 200
    assert {*re.findall(r'data-source="(/findings/\d+)"', printed)} == {f"/findings/{i}" for i in range(200)}
    assert page.count('data-source="/heads/') == 24 * 16 * 12
    assert printed.count('data-source="/heads/') == 36 * 12
    assert "348 heads more, none of which was found" in printed
    assert "none of which was found" not in page


def test_every_header_cell_of_the_pdf_has_a_scope(run_dir: Path) -> None:
    scopes = {"/Row": 0, "/Column": 0}
    with pikepdf.open(run_dir / "report.pdf") as pdf:
        headers = [item for item in pdf.objects if isinstance(item, pikepdf.Dictionary) and item.get("/S") == "/TH"]
        for header in headers:
            scopes[str(header["/A"]["/Scope"])] += 1
    assert min(scopes.values()) > 20


def test_pdf_opens_nothing_but_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    page = (
        f"<html lang=en><title>t</title><img alt=a src='{secret.as_uri()}'><img alt=b src='http://127.0.0.1:9/x.png'>"
    )
    render_pdf(page, b"{}", "0" * 64, "2026-03-01T00:00:00+00:00")
    refused = [record.getMessage() for record in caplog.records if "disallowed" in record.getMessage()]
    assert len(refused) == 2


def test_foreign_date_does_not_stop_the_pdf() -> None:
    pdf = render_pdf("<html lang=en><title>t</title><p>x", b"{}", "0" * 64, "yesterday")
    assert len(pypdf.PdfReader(io.BytesIO(pdf)).pages) == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "damaged"), (b"{}", "audit_id"), (b'{"audit_id": 1', "damaged"), (b"\xff\xfe", "damaged")],
)
def test_damaged_record_names_place_and_fix(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "audit.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        render_run(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert what in message
    assert "\n" not in message
    assert caught.value.fix
    assert [item.name for item in tmp_path.iterdir()] == ["audit.json"]


def test_a_record_of_another_schema_says_which_version_made_it(tmp_path: Path) -> None:
    record = json.loads(examples()["single_layer"].model_dump_json())
    old = record | {"schema_version": "1.0", "reasons": ["a sentence"]}
    old["provenance"]["versions"]["vit-audit"] = "0.3.1"
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_audit(path)
    message = str(caught.value)
    assert "has schema 1.0, made by vit-audit 0.3.1" in message
    assert "\n" not in message


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; name a run directory"):
        load_audit(tmp_path / "audit.json")


def test_report_imports_no_torch() -> None:
    code = "import sys, audit.report; sys.exit(bool({'torch', 'timm', 'weasyprint'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
