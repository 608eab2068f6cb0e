"""What holds the project together: cards, documents, version, wheel, and nothing of one machine in it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from audit import __version__
from audit.card import load_card
from audit.card.faults import model_in
from audit.card.schema import Card
from audit.cli import main
from audit.resources import resource_dir

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


CARDS = [*sorted(resource_dir("datasets").rglob("*.yaml")), *sorted((ROOT / "docs").rglob("*.yaml"))]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_built_in_cards_load_and_say_what_they_are_for(path: Path) -> None:
    card = load_card(path)
    assert card.name != "Unnamed audit"
    assert card.intended_use
    assert card.out_of_scope


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    groups = {name: command for name, command in main.commands.items() if isinstance(command, click.Group)}
    commands = {name: command for name, command in main.commands.items() if name not in groups}
    for group, held in groups.items():
        commands |= {f"{group} {name}": command for name, command in held.commands.items()}
    for name, command in commands.items():
        assert f"`vit-audit {name}" in text, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert max(option.opts, key=len) in text, f"{name} {option.opts}"
    for variable in ("VIT_AUDIT_DATA", "VIT_AUDIT_CACHE"):
        assert variable in text


def parts(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Yield a schema and every schema inside it, once."""
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in models_inside(field.annotation):
            yield from parts(inner, seen)


def models_inside(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the schemas that an annotation names, inside lists and mappings too."""
    found = model_in(annotation)
    if found is not None:
        yield found
    for argument in getattr(annotation, "__args__", ()):
        yield from models_inside(argument)


def test_every_part_of_a_card_has_its_table() -> None:
    schemas = {schema.__name__ for schema in parts(Card, set())}
    assert len(schemas) >= 11
    assert set(re.findall(r"<!-- table: card\.(\w+) -->", (ROOT / "docs" / "card.md").read_text("utf-8"))) == schemas


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ == settings()["project"]["version"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_wheel_takes_templates_and_cards_along() -> None:
    wheel = settings()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["audit", "vit_audit"]
    assert wheel["force-include"] == {"templates": "audit/_templates", "datasets": "audit/_datasets"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_rooms_of_the_architecture_are_those_of_the_code() -> None:
    layers = settings()["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = re.findall(
        r"^\| `audit/([\w/.]+?)(?:\.py|/)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.M
    )
    assert [f"audit.{name}" for name in rows] == layers


def test_no_path_of_a_machine_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    own = re.compile(rb"(?<![\w.}])/(?:home|root|work|Users)/\w+|C:\\Users")
    faults = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and own.search(path.read_bytes()):
            faults.append(name)
    assert faults == []


def test_continuous_integration_runs_the_same_check() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make check" in script.read_text(encoding="utf-8")
