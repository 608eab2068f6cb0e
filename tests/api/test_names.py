"""The public names: pinned, documented, fast to import."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vit_audit as va

pytestmark = pytest.mark.unit

NAMES = [
    "AuditError", "Card", "CardError", "Data", "DataError", "ExitCode", "InputError", "Inspection", "ModelError",
    "Net", "Outcome", "Plan", "Predictions", "Preprocess", "Result", "UnfinishedError", "__version__", "adapt",
    "attribution", "audit", "built_in_cards", "diff", "disparity", "fetch", "first_card", "inspect_checkpoint",
    "load_card", "load_model", "open_run", "patch_heads", "plan", "predictions", "rendered_faces", "supported_models",
    "sweep", "verify", "wrap",
]  # fmt: skip
MODULES = ["cards", "checkpoints", "data", "models", "plans", "research", "results", "running"]
IMPORT = """
import sys, time
begun = time.perf_counter()
import vit_audit
print(time.perf_counter() - begun, "torch" in sys.modules)
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


@pytest.mark.parametrize("name", [n for n in NAMES if inspect.isfunction(getattr(va, n))])
def test_functions_have_numpydoc(name: str) -> None:
    text = inspect.getdoc(getattr(va, name)) or ""
    for section in ("Examples\n--------", ">>> "):
        assert section in text, section
    assert "Returns\n-------" in text
    for parameter in inspect.signature(getattr(va, name)).parameters:
        assert parameter in text


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(f"audit.api.{module}"), optionflags=flags)
    assert tried > 0
    assert failed == 0
    assert time.monotonic() - begun < 60
