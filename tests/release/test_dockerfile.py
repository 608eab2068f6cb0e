"""The Dockerfile agrees with pyproject.toml and the Makefile, and what can be run of it outside a container runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.release.conftest import ROOT, Environment

pytestmark = pytest.mark.unit
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> Iterator[tuple[str, str, str]]:
    """Yield stage, instruction and what follows it, with lines that go on in one."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    stage = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.rpartition(" AS ")[2]
        if word:
            yield stage, word, rest.strip()


def all_of(word: str, stage: str | None = None) -> list[str]:
    return [rest for at, name, rest in instructions() if name == word and stage in (None, at)]


def made(name: str) -> str:
    """Return what the Makefile sets a name to."""
    found = re.search(rf"^{name} :?\??= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return found.group(1)


def test_two_targets_share_one_base_and_run_as_no_root() -> None:
    assert [rest.rpartition(" AS ")[2] for rest in all_of("FROM")] == ["wheel", "base", "cpu", "cuda"]
    for target in ("cpu", "cuda"):
        own = [(word, rest) for at, word, rest in instructions() if at == target]
        assert own[0] == ("FROM", f"base AS {target}")
        assert own[-1] == ("USER", "auditor")
    assert "useradd" in " ".join(all_of("RUN", "base"))
    assert all_of("HEALTHCHECK", "base")


def test_python_torch_and_extras_are_those_of_the_package() -> None:
    python = next(rest.partition("=")[2] for rest in all_of("ARG", "") if rest.startswith("PYTHON="))
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, lowest.split(".")))
    torch = next(rest for rest in all_of("RUN", "cpu") if "--index-url" in rest)
    asked = [d for d in PROJECT["dependencies"] if re.match(r"torch(vision)?[<>=]", d)]
    assert shlex.split(torch)[-2:] == asked
    assert shlex.split(torch)[-3] == made("CPU_WHEELS")
    extras = [rest.partition("=")[2].split(",") for rest in all_of("ARG") if rest.startswith("EXTRAS=")]
    assert len(extras) == 2
    assert all(set(named) <= set(PROJECT["optional-dependencies"]) - {"dev", "docs", "browser"} for named in extras)


def test_system_packages_are_those_that_make_asks_for() -> None:
    installed = all_of("RUN", "base")[0].partition("--no-install-recommends")[2].partition("&&")[0]
    assert installed.split() == made("PANGO").split()


def test_what_is_copied_is_there_and_let_in_and_nothing_else_is() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")
    ]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {name for rest in all_of("COPY", "wheel") for name in rest.split()[:-1]}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert any(fnmatch("audit/__pycache__", rule) for rule in rules)
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert {*hatch["wheel"]["packages"], *hatch["wheel"]["force-include"]} <= copied


@pytest.mark.long
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_its_steps_install_a_tool_that_passes_its_own_healthcheck(
    target: str, environment: Environment, tmp_path: Path
) -> None:
    """Of the steps those of pip; of what they would fetch, what is installed here is taken."""
    pytest.importorskip("hatchling", reason="make setup installs it")
    source, wheels, work = tmp_path / "source", tmp_path / "wheels", tmp_path / "work"
    work.mkdir()
    for rest in all_of("COPY", "wheel"):
        *names, place = rest.split()
        for name in names:
            copy = source / place / name if place == "./" else source / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            done = environment.run("cp", "-r", ROOT / name, copy, folder=tmp_path)
            assert done.returncode == 0, done.stderr
    extras = next(rest.partition("=")[2] for rest in all_of("ARG", target))
    given = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    steps = [(source, step) for step in all_of("RUN", "wheel")] + [(work, step) for step in all_of("RUN", target)]
    assert len(steps) >= 2
    for folder, step in steps:
        assert step.startswith("pip ")
        run = step.replace("pip ", "python -m pip ", 1).replace("/wheels", str(wheels))
        done = environment.run("sh", "-euc", run, folder=folder, given={**given, "EXTRAS": extras})
        assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
    check = all_of("HEALTHCHECK")[0].partition(" CMD ")[2] or all_of("HEALTHCHECK")[0].partition("CMD ")[2]
    assert check.startswith("vit-audit check ")
    done = environment.run("sh", "-euc", check, folder=work)
    assert done.returncode == 0, done.stderr
    assert "smiling" in done.stdout
    entry = [word.strip('"') for word in all_of("ENTRYPOINT")[0].strip("[]").split(", ")]
    assert environment.run(*entry, "--version", folder=work).returncode == 0


@pytest.mark.long
def test_the_image_for_processors_is_built_and_is_healthy() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("not run: Docker does not answer")
    name = "vit-audit-tested:cpu"
    subprocess.run(["docker", "build", "--target", "cpu", "--tag", name, str(ROOT)], check=True)
    checked = ["docker", "run", "--rm", name, "check", "synthetic-expressions"]
    said = subprocess.run(checked, capture_output=True, text=True, check=True)
    assert "3600 images" in said.stdout
