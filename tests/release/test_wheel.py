"""Wheel and sdist: what is in them and what is not, that either gives the other, and that the wheel runs elsewhere."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from audit import __version__
from tests.release.conftest import ROOT, Environment, built

pytestmark = pytest.mark.unit
INFO = f"vit_audit-{__version__}.dist-info"


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return set(opened.namelist())
    with tarfile.open(archive) as opened:
        return {member.name.partition("/")[2] for member in opened if member.isfile()}


def beside(folder: str, *endings: str) -> set[str]:
    """Return the files of a folder of this checkout, without what running leaves behind."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files if not endings or path.suffix in endings}


def test_the_wheel_holds_code_templates_cards_types_and_licence_and_nothing_else(wheel: Path) -> None:
    code = beside("audit") | beside("vit_audit")
    data = {f"audit/_{name}" for name in beside("templates") | beside("datasets")}
    about = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names(wheel) == code | data | about
    assert {"audit/py.typed", "vit_audit/py.typed", "audit/_templates/report.html.j2"} <= names(wheel)
    assert "audit/_datasets/synthetic-expressions.yaml" in names(wheel)
    with zipfile.ZipFile(wheel) as opened:
        metadata = opened.read(f"{INFO}/METADATA").decode()
    assert f"Version: {__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata


def test_the_sdist_holds_what_the_wheel_is_built_of_and_no_test_report_or_cache(sdist: Path) -> None:
    held = names(sdist)
    source = beside("audit") | beside("vit_audit") | beside("templates") | beside("datasets")
    documents = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "pyproject.toml", "PKG-INFO"}
    assert held == source | documents | {".gitignore"}
    assert not [name for name in held if name.startswith(("tests", "reports", "benchmarks")) or "__pycache__" in name]


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    again = built("wheel", tmp_path, tmp_path / f"vit_audit-{__version__}")
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.long
def test_the_wheel_runs_where_there_is_no_checkout(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = ("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    done = environment.run(*pip, wheel, folder=elsewhere)
    assert done.returncode == 0, done.stderr
    where = environment.run(
        "python", "-c", "import audit, vit_audit; print(audit.__file__, vit_audit.__file__)", folder=elsewhere
    )
    assert all(path.startswith(str(environment.folder)) for path in where.stdout.split()), where
    assert len(where.stdout.split()) == 2
    said = environment.run(environment.bin / "vit-audit", "--version", folder=elsewhere)
    assert (said.returncode, __version__ in said.stdout) == (0, True), said
    said = environment.run(environment.bin / "vit-audit", "datasets", folder=elsewhere)
    assert (said.returncode, "synthetic-expressions" in said.stdout) == (0, True), said
    said = environment.run(environment.bin / "vit-audit", "check", "synthetic-expressions", folder=elsewhere)
    assert said.returncode == 0, said.stderr
    assert "3600 images" in said.stdout
    assert list(elsewhere.iterdir()) == []  # nothing is written beside
