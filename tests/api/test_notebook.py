"""The notebooks run in a kernel, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vit_audit as va

pytestmark = pytest.mark.end_to_end
NOTEBOOKS = Path(__file__).parents[2] / "examples"
MOST_LINES = 25


def executed(name: str, folder: Path) -> list[Any]:
    """Run a notebook in a folder, and return its cells of code."""
    import nbformat  # which takes seconds that others need not wait for
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= shown
    return code


def said(cell: Any, kind: str = "text/html") -> str:
    """Return what a cell shows, or what it prints."""
    return "".join(str(output.get("data", {}).get(kind) or output.get("text", "")) for output in cell.outputs)


def test_own_module_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    code = executed("own_module.ipynb", tmp_path)
    assert sum(bool(line.strip()) for cell in code for line in cell.source.splitlines()) <= MOST_LINES
    assert "DISPARITY FOUND" in said(code[-2])
    assert (tmp_path / "runs" / "own-module" / "report.html").is_file()


@pytest.mark.long
def test_the_hugging_face_notebook_answers_as_transformers_does(tmp_path: Path) -> None:
    code = executed("hugging_face.ipynb", tmp_path)
    (answers,) = [cell for cell in code if "theirs" in cell.source]
    classes, difference = said(answers).rsplit(maxsplit=1)
    assert classes == "('neutral', 'smiling')"
    assert float(difference) < 1e-5
    assert va.open_run(tmp_path / "runs" / "hugging-face").outcome == "DISPARITY FOUND"


@pytest.mark.long
def test_the_notebook_of_a_repair_ends_with_its_certificate(tmp_path: Path) -> None:
    code = executed("finding_to_repair.ipynb", tmp_path)
    repaired = va.open_repair(tmp_path / "runs" / "repair")
    (named,) = [cell for cell in code if "repaired.state" in cell.source]
    assert str(repaired.state) in said(named)
    assert repaired.certificate is not None
    assert repaired.certificate.sealed_openings == 1
    assert {str(line.state) for line in repaired.lines} <= set(re.findall(r"failed|shown|not shown", said(code[-1])))
    assert (tmp_path / "runs" / "repair" / "repair.html").is_file()
