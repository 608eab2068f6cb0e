"""What an audit needs beyond the package itself is named in one line, with the extra that brings it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import transformers as hf

import vit_audit as va
from audit.errors import ModelError
from audit.extras import EXTRAS
from tests.models.small_towers import OPEN_CLIP, write_open_clip

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parent.parent


def without(package: str, code: str, *given: Path) -> str:
    """Return the last line that Python prints to its errors where a package cannot be imported."""
    blocked = f"import sys; sys.modules[{package!r}] = None; {code}"
    done = subprocess.run([sys.executable, "-c", blocked, *map(str, given)], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_one_line_that_names_its_extra(package: str) -> None:
    said = without(package, f"from audit.extras import needs; needs({package!r}, 'card')")
    assert said == (
        f"audit.errors.InputError: card: needs {package}, which is not installed; "
        f"pip install 'vit-audit[{EXTRAS[package]}]'"
    )


def test_a_package_that_is_there_and_broken_is_told_of_as_such(tmp_path: Path) -> None:
    (tmp_path / "open_clip.py").write_text("raise ImportError('torch is too old')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from audit.extras import needs; needs('open_clip', 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "x: needs open_clip, which cannot be imported (torch is too old); pip install" in done.stderr


def test_a_workbook_without_openpyxl(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.save(tmp_path / "t.xlsx")
    said = without(
        "openpyxl", "import pathlib, audit.card.read_table as r; r.read_table(pathlib.Path(sys.argv[1]))",
        tmp_path / "t.xlsx",
    )  # fmt: skip
    assert said.endswith(
        "t.xlsx: needs openpyxl, which is not installed; pip install 'vit-audit[excel]', or save it as CSV"
    )


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **model: Any) -> str:
    """Return what is said where a model of a folder cannot be opened for lack of transformers."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setenv("VIT_AUDIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError) as caught:
        va.load_model({"weights": str(tmp_path), **model})
    return str(caught.value)


def test_a_hugging_face_folder_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    hf.ViTForImageClassification(
        hf.ViTConfig(**shape, image_size=32, patch_size=8, id2label={0: "no", 1: "yes"})
    ).save_pretrained(tmp_path)
    half = [0.5] * 3
    assert refused(tmp_path, monkeypatch, name="huggingface", mean=half, std=half) == (
        "model.name: huggingface: needs transformers, which is not installed; pip install 'vit-audit[hf]'"
    )


def test_a_tokenizer_of_hugging_face_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OPEN_CLIP["own tower"]
    config = {**config, "text_cfg": {**config["text_cfg"], "hf_tokenizer_name": "of/none"}}
    write_open_clip(tmp_path, config)
    prompts = {"happy": ["joy"], "sad": ["tears"]}
    assert refused(tmp_path, monkeypatch, name="open_clip/own", prompts=prompts) == (
        "model.prompts of open_clip/own: needs transformers, which is not installed; pip install 'vit-audit[hf]'"
    )


def test_every_extra_is_one_of_the_package_and_documented() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(offered)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{extra}`" in readme for extra in EXTRAS.values())
