"""The tutorial as a reader follows it: its script, its card, and its commands, one after the other."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import vit_audit as va
from tests.end_to_end.conftest import Invoke

pytestmark = [pytest.mark.end_to_end, pytest.mark.long]
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_tutorial_leads_from_nothing_to_a_finding_that_is_measured_again(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words: dict[str, str] = {}
    ran = []
    for token in MarkdownIt().parse(TUTORIAL.read_text(encoding="utf-8")):
        if token.info == "python":
            Path("make.py").write_text(token.content, encoding="utf-8")
            subprocess.run([sys.executable, "make.py"], check=True)
        elif token.info == "yaml":
            Path("dataset.yaml").write_text(token.content, encoding="utf-8")
        elif token.type == "code_block":
            for line in re.findall(r"^vit-audit (.+)$", token.content, re.M):
                typed = [words.get(word, word) for word in shlex.split(line, comments=True)]
                said = invoke(*typed)
                ran.append(typed[0])
                assert said.exit_code == (typed[0] == "run"), said.output
                if typed[0] == "run":
                    (run,) = (tmp_path / "reports").iterdir()
                    words = {"RUN": str(run), "FINDING": va.open_run(run).findings[0].id}
    assert ran == ["init", "check", "run", "verify", "reproduce"]
    assert (tmp_path / "reports" / Path(words["RUN"]).name / "report.html").is_file()
