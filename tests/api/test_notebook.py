"""The notebook runs in a kernel, as a reader would run it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end
NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_module.ipynb"
MOST_LINES = 25


def test_own_module_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    import nbformat  # which takes seconds that others need not wait for
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(line.strip()) for cell in code for line in cell.source.splitlines()) <= MOST_LINES
    assert not any(cell.outputs for cell in code)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= shown
    printed = "".join(str(output.get("data", {}).get("text/html", "")) for output in code[-2].outputs)
    assert "DISPARITY FOUND" in printed
    assert (tmp_path / "runs" / "own-module" / "report.html").is_file()
