"""The public names: pinned, documented, fast to import."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import operator
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import vit_audit as va
from audit.api.results import Comparison
from audit.api.tables import Gaps, Heads, Ledger, Rates, Table

pytestmark = pytest.mark.unit

NAMES = [
    "AuditError", "Card", "CardError", "Data", "DataError", "ExitCode", "GateResult", "InputError", "Inspection",
    "MLflowTracker", "ModelError", "Net", "Outcome", "Plan", "Predictions", "Preprocess", "RepairResult", "Result",
    "StoredControls", "TensorBoardTracker", "Tracker", "UnfinishedError", "WaitingError", "WandbTracker",
    "__version__", "adapt", "attribution", "audit", "built_in_cards", "diff", "disparity", "export_controls",
    "fetch", "first_card", "gate", "import_controls", "inspect_checkpoint", "list_controls", "load_card",
    "load_model", "merge", "open_repair", "open_run", "patch_heads", "patch_parts", "plan", "predictions",
    "rendered_faces", "repair", "shift_means", "submit", "supported_models", "sweep", "verify", "work", "wrap",
    "written",
]  # fmt: skip
TABLES = [Table, Rates, Gaps, Heads, Ledger, Comparison]  # what a result gives
CLASSES = [*(item for name in NAMES if inspect.isclass(item := getattr(va, name))), *TABLES]
METHODS = [
    f"{c.__module__} {c.__qualname__}.{name}"
    for c in CLASSES
    for name, item in vars(c).items()
    if isinstance(item, types.FunctionType | classmethod | staticmethod)
    and not name.startswith("_")
    and getattr(c, name).__module__.startswith("audit.")  # not what pydantic adds
]
MODULES = sorted(
    {getattr(va, name).__module__ for name in NAMES if name != "__version__"} | {c.__module__ for c in TABLES}
)
RAISES_NOTHING = {"built_in_cards"}
IMPORT = """
import sys, time
begun = time.process_time()  # however busy the machine is
import vit_audit
print(time.process_time() - begun, "torch" in sys.modules)
"""


def test_public_names_are_these() -> None:
    assert sorted(va.__all__) == sorted(NAMES)
    assert sorted(dir(va)) == sorted(NAMES)
    for name in NAMES:
        assert getattr(va, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = va.nothing


def test_import_is_fast_and_leaves_torch_alone() -> None:
    taken = []
    for _ in range(3):
        said = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout.split()
        assert said[1] == "False"
        taken.append(float(said[0]))
    assert min(taken) < 0.3


@pytest.mark.parametrize("name", [n for n in NAMES if n != "__version__"])
def test_public_names_have_numpydoc(name: str) -> None:
    item = getattr(va, name)
    text = inspect.getdoc(item) or ""
    for section in ("Examples\n--------", ">>> "):
        assert section in text, section
    if inspect.isfunction(item):
        assert "Returns\n-------" in text
        assert "Raises\n------" in text or name in RAISES_NOTHING
        for parameter in inspect.signature(item).parameters:
            assert parameter in text


@pytest.mark.parametrize("method", METHODS)
def test_public_methods_have_an_example(method: str) -> None:
    module, name = method.split()
    text = inspect.getdoc(operator.attrgetter(name)(importlib.import_module(module))) or ""
    assert "Examples\n--------" in text
    assert ">>> " in text


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return what the example of ``audit`` names, and its ``result``, which the examples of results are about."""
    source = inspect.getdoc(va.audit) or ""
    (lines,) = doctest.DocTestFinder(recurse=False).find(va.audit, "audit")
    assert "runs/smiles" in source
    known: dict[str, object] = {}
    with contextlib.chdir(tmp_path_factory.mktemp("example")):
        for line in lines.examples[:-1]:
            exec(line.source, known)
        known["result"] = va.audit(known["plan"], out=Path("runs/smiles").absolute(), report=False)
    return {name: known[name] for name in ("data", "answers", "plan", "result")}


@pytest.mark.usefixtures("no_pdf")
@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: dict[str, object]) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=flags, extraglobs=example)
    assert tried > 0
    assert failed == 0
    assert time.process_time() - begun < 60
