"""Continuous integration: what the action, the GitLab job and the pre-commit hook say is done, step by step."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for
from ruamel.yaml import YAML

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "reports" / "sample"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
GITLAB: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab.yml").read_text(encoding="utf-8"))
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with the command line of this checkout, and an earlier run of other images."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "vit-audit"
    code = shlex.quote("from audit.cli import entry; entry()")
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c {code} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    shutil.copytree(SAMPLE, tmp_path / "earlier run", ignore=shutil.ignore_patterns("effects", "exports", "report.*"))
    record = tmp_path / "earlier run" / "audit.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["data"]["fingerprint"] = "0" * 64
    record.write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def done(script: str, place: Path, shell: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [*shlex.split(shell), script], cwd=place, env={**os.environ, "PATH": path, **variables},
        capture_output=True, text=True,
    )  # fmt: skip


def filled(text: str, inputs: Mapping[str, str], place: Path) -> str:
    """Fill in the expressions of a step, as a runner does."""
    values = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(ROOT)}
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: values[found[1]], text)


def run_action(place: Path, **given: str) -> tuple[int, dict[str, str], str]:
    """Run the steps of the action; return its exit code, its outputs, and the summary of the job."""
    inputs = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()} | given
    unknown = set(given) - set(ACTION["inputs"])
    assert not unknown
    outputs, summary = place / "outputs", place / "summary"
    outputs.touch(), summary.touch()
    code = 0
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        if "if" in step and inputs["install"] != "true":
            continue
        variables = {name: filled(value, inputs, place) for name, value in step["env"].items()}
        variables |= {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(summary)}
        said = done(step["run"], place, "bash --noprofile --norc -e -o pipefail -c", variables)
        code = code or said.returncode
    lines = dict(line.split("=", 1) for line in outputs.read_text(encoding="utf-8").splitlines())
    return code, lines, summary.read_text(encoding="utf-8")


def test_the_action_stops_a_run_above_policy_and_tells_the_job(place: Path) -> None:
    code, outputs, summary = run_action(place, run=str(SAMPLE), install="false", out="what came out")
    assert code == 1
    assert outputs == {
        "exit-code": "1", "sarif": "what came out/gate.sarif", "junit": "what came out/junit.xml",
    }  # fmt: skip
    assert summary.startswith("## ▲ Rendered expressions, association planted: ABOVE POLICY")
    assert (place / outputs["sarif"]).is_file()
    assert {f"${{{{ steps.gate.outputs.{name} }}}}" for name in outputs} == {
        output["value"] for output in ACTION["outputs"].values()
    }


def test_the_action_hands_bad_input_on_and_shows_no_summary_of_an_earlier_run(place: Path) -> None:
    (place / "vit-audit-gate").mkdir()
    (place / "vit-audit-gate" / "summary.md").write_text("of an earlier run", encoding="utf-8")
    code, outputs, summary = run_action(place, run="none", install="false")
    assert (code, outputs["exit-code"], summary) == (2, "2", "")


def test_the_gitlab_job_compares_with_its_baseline(place: Path) -> None:
    job = GITLAB[".vit-audit-gate"]
    given = {"VIT_AUDIT_RUN": str(SAMPLE), "VIT_AUDIT_BASELINE": "earlier run", "VIT_AUDIT_POLICY": "false"}
    assert set(given) <= set(job["variables"])
    said = done("\n".join(job["script"]), place, "sh -e -c", {**job["variables"], **given})
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("gate: PASSED: no control failed, no gap shown to be larger than in the baseline")
    assert (place / job["artifacts"]["reports"]["junit"]).is_file()
    assert job["allow_failure"] == {"exit_codes": [4]}


def test_the_hook_finds_the_faults_of_cards_alone(place: Path) -> None:
    bad = place / "cards" / "bad.yaml"
    bad.parent.mkdir()
    bad.write_text("name: Smiles\nfoo: 1\n", encoding="utf-8")
    looked_at = [name for name in ("cards/bad.yaml", "dataset.yml", "values.yaml") if re.search(HOOK["files"], name)]
    assert looked_at == ["cards/bad.yaml", "dataset.yml"]
    good = ROOT / "datasets" / "raf-db.yaml"
    said = done(f"{HOOK['entry']} {shlex.quote(str(bad))} {shlex.quote(str(good))} none.yaml", place, "sh -c", {})
    assert said.returncode == 2
    assert f"{bad}:2 foo: unknown key 'foo'" in said.stderr
    assert "none.yaml: no such card" in said.stderr
    assert done(f"{HOOK['entry']} {shlex.quote(str(good))}", place, "sh -c", {}).returncode == 0


def test_what_the_documents_show_fits_the_action_and_the_hook() -> None:
    workflow, hooks = map(yaml.safe_load, BLOCKS)
    (step,) = [s for s in workflow["jobs"]["gate"]["steps"] if s.get("id") == "gate"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert hooks["repos"][0]["hooks"][0]["id"] == HOOK["id"]


def test_files_meet_the_schemas_of_their_services() -> None:
    texts = {
        "github-actions": (ROOT / "action.yml").read_text(encoding="utf-8"),
        "github-workflows": BLOCKS[0],
        "gitlab-ci": (ROOT / "examples" / "ci" / "gitlab.yml").read_text(encoding="utf-8"),
    }
    schemas = files("check_jsonschema") / "builtin_schemas" / "vendor"
    for name, text in texts.items():
        schema = json.loads((schemas / f"{name}.json").read_text(encoding="utf-8"))
        read = YAML(typ="safe").load(text)  # YAML 1.2, in which "on" is a word
        faults = [fault.message for fault in validator_for(schema)(schema).iter_errors(read)]
        assert faults == [], name


@pytest.mark.long
def test_the_action_installs_this_version(place: Path) -> None:
    """Into an environment of its own, which has torch and the rest already."""
    own, shims = place / "own", place / "bin"
    subprocess.run([sys.executable, "-m", "venv", own], check=True)
    (packages,) = own.glob("lib/python*/site-packages")
    (packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (shims / "python").write_text(f'#!/bin/sh\nexec {own}/bin/python "$@" --no-deps\n', encoding="utf-8")
    (shims / "python").chmod(0o755)
    (shims / "vit-audit").unlink()
    (shims / "vit-audit").symlink_to(own / "bin" / "vit-audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        code, _, summary = run_action(place, run=str(SAMPLE))
    assert code == 1
    assert "ABOVE POLICY" in summary
    assert (packages / "audit" / "_templates" / "gate.md.j2").is_file()
