"""The bill of materials of a release: valid CycloneDX, and all that the package needs, as it is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from audit import __version__
from tests.release.conftest import ROOT

pytestmark = pytest.mark.unit


def bill(folder: Path, *extras: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, ROOT / ".ci" / "sbom.py", folder, *extras]
    given = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}
    done = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = folder / f"vit-audit-{__version__}.cdx.json"
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    assert done.stdout == f"{path}: {len(content['components'])} packages\n"
    return text, content


def canonical(requirement: str) -> str:
    return re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-")


def test_it_is_valid_and_names_what_is_installed(tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion  # takes seconds
    from cyclonedx.validation.json import JsonStrictValidator

    text, content = bill(tmp_path)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    subject = content["metadata"]["component"]
    assert (subject["name"], subject["version"]) == ("vit-audit", __version__)
    assert subject["licenses"][0]["license"]["name"] == "Apache-2.0"
    parts = {part["name"]: part for part in content["components"]}
    for name, part in parts.items():
        assert part["version"] == version(name)
        assert part["purl"] == f"pkg:pypi/{name}@{part['version'].replace('+', '%2B')}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {canonical(line) for line in project["dependencies"]}
    needs = {row["ref"]: set(row.get("dependsOn", ())) for row in content["dependencies"]}
    refs = {part["bom-ref"]: part["name"] for part in parts.values()}
    assert {refs[ref] for ref in needs[subject["bom-ref"]]} == direct
    reached: set[str] = set()
    waiting = [subject["bom-ref"]]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += needs[ref]
    assert reached == {subject["bom-ref"], *refs}  # nothing that is not needed, and nothing that nobody names
    assert not {"pytest", "hypothesis", "ruff", "wandb"} & parts.keys()


def test_it_is_the_same_for_the_same_packages_and_takes_extras_along(tmp_path: Path) -> None:
    for name in ("one", "two", "more"):
        (tmp_path / name).mkdir()
    first, plain = bill(tmp_path / "one")
    assert bill(tmp_path / "two")[0] == first
    more = bill(tmp_path / "more", "onnx")[1]
    names = [{part["name"] for part in content["components"]} for content in (plain, more)]
    assert "onnxruntime" in names[1] - names[0]
    assert names[0] < names[1]
