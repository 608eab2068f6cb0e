"""What documents tell a reader to type: every command is run here, or it is said why not; calls fit their functions."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from markdown_it import MarkdownIt
from PIL import Image

import vit_audit as va
from audit.cli import main
from audit.exit_codes import ExitCode
from audit.work.shards import Shard
from tests.small_world import Invoke

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
WRITTEN_BY_A_BUILD = ("docs/generated", "docs/gallery")
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if not path.relative_to(ROOT).as_posix().startswith(WRITTEN_BY_A_BUILD)
]
GALLERY = sorted((ROOT / "examples" / "gallery").glob("plot_*.py"))

# Run one after the other in a folder that has what a reader would have, with what each of them ends with.
RUN = {
    "vit-audit datasets": ExitCode.DONE,
    "vit-audit card-section reports/sample": ExitCode.DONE,
    "vit-audit init photos/table.csv": ExitCode.DONE,
    "vit-audit init faces/faces.csv --out first.yaml": ExitCode.DONE,
    "vit-audit check dataset.yaml": ExitCode.DONE,
    "vit-audit run dataset.yaml": ExitCode.DISPARITY,
    "vit-audit verify FOLDER": ExitCode.DONE,
    "vit-audit reproduce RUN FINDING --data .": ExitCode.DONE,
    "vit-audit review FOLDER review.json": ExitCode.DONE,
    "vit-audit sign FOLDER --key key.pem": ExitCode.DONE,
    "vit-audit verify RUN --key public.pem": ExitCode.DONE,
    "vit-audit export FOLDER COPY --shareable": ExitCode.DONE,
    "vit-audit diff OLD NEW": ExitCode.DONE,
}
NOT_RUN = {
    "vit-audit verify RUN": "another word for FOLDER",
    "vit-audit review RUN review.json": "another word for FOLDER",
    "vit-audit sign RUN --key key.pem": "another word for FOLDER",
    "vit-audit export RUN COPY --shareable": "another word for FOLDER",
    "vit-audit diff RUN LATER": "other words for OLD and NEW",
    "vit-audit review NEW --from FOLDER": "needs two runs: tests/report/test_reviewing.py",
    "vit-audit sign FOLDER --pdf --key key.pem --certificate certificate.pem": "tests/report/test_reviewing.py",
    "vit-audit gate reports/sample --baseline reports/sample --no-policy --out gate": "slow: tests/test_ci.py",
    "vit-audit run synthetic-expressions": "takes minutes: `make demo`; its shareable copy is reports/sample",
    "vit-audit run card.yaml --shards": "needs a model: tests/work/test_shards.py",
    "vit-audit work reports/RUN --shard 1/8": "likewise",
    "vit-audit merge reports/RUN": "likewise",
    "vit-audit check card.yaml": "another word for dataset.yaml",
    "vit-audit run card.yaml --workers 8": "needs a model: tests/end_to_end/test_workers.py",
    f"vit-audit run card.yaml --device {','.join(f'cuda:{number}' for number in range(8))}": (
        "needs eight GPUs: tests/models/test_device.py has stand-ins"
    ),
    "vit-audit controls export RUN s3://BUCKET/controls --key key.pem": (
        "needs a store: tests/pipeline/test_share_controls.py"
    ),
    "vit-audit controls list s3://BUCKET/controls": "likewise",
    "vit-audit controls import s3://BUCKET/controls --trust public.pem": "likewise",
    "vit-audit run card.yaml --ray auto": "needs a cluster: tests/work/test_ray.py",
    "vit-audit submit reports/RUN --slurm --account lab --partition gpu --time 4:00:00 --gpus 1 --cpus 8 --jobs 32": (
        "needs a cluster: tests/work/test_slurm.py"
    ),
    "vit-audit check dataset.yaml --show seen": "needs a model: tests/api/test_names.py runs the example of Plan.show",
    "vit-audit inspect my-vit": "needs a folder of transformers: tests/end_to_end/test_inspect.py",
    "vit-audit inspect last.ckpt": "needs a checkpoint: tests/end_to_end/test_inspect.py",
    "vit-audit repair RUN": "takes minutes: tests/end_to_end/test_repair.py",
    "vit-audit repair RUN --method dfr --method heads_to_reference": "likewise",
    "vit-audit repair RUN --sealed others.csv": "likewise",
    "python benchmarks/results.py": "takes hours: tests/benchmarks/test_results.py has its figures",
}


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield kind and content of every block of code of a document."""
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            yield token.info, token.content


def commands() -> set[str]:
    """Return every command of the documents' blocks, without comments."""
    found = set()
    for path in DOCUMENTS:
        for kind, content in blocks(path):
            if kind in ("", "sh"):
                lines = [line.strip().removeprefix("$ ") for line in content.splitlines()]
                found |= {
                    shlex.join(shlex.split(line, comments=True))
                    for line in lines
                    if re.match("(vit-audit|python) ", line)
                }
    return found


def test_every_command_is_run_or_it_is_said_why_not() -> None:
    assert not RUN.keys() & NOT_RUN.keys()
    assert commands() == RUN.keys() | NOT_RUN.keys()


def test_reasons_name_tests_that_are_there() -> None:
    for reason in NOT_RUN.values():
        for name in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_option_that_a_document_names_is_one(path: Path) -> None:
    context = click.Context(main)
    for typed in re.findall(r"vit-audit ([a-z-]+[^`\n#]*)", path.read_text(encoding="utf-8")):
        name, *words = typed.split()
        if name not in main.list_commands(context):
            continue  # the name of the tool in a sentence
        command = main.get_command(context, name)
        if isinstance(command, click.Group) and words:
            command = command.get_command(context, words.pop(0))
        assert command is not None, typed
        known = {option for own in command.get_params(context) for option in (*own.opts, *own.secondary_opts)}
        assert {word.strip("[],.:;()") for word in words if word.strip("[(").startswith("--")} <= known, typed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that has tables, answers, keys and a card, as a reader would have them."""
    monkeypatch.chdir(tmp_path)
    people = pd.DataFrame({"file": [f"{i}.png" for i in range(400)], "expression": ["sad", "happy"] * 200})
    people = people.assign(gender=["female", "female", "male", "male"] * 100)
    for folder, table in (("photos", "table.csv"), ("faces", "faces.csv")):
        (tmp_path / folder).mkdir()
        people.to_csv(tmp_path / folder / table, index=False)
        for file in people["file"]:
            Image.new("L", (8, 8)).save(tmp_path / folder / file)
    people.assign(predicted=["sad", "sad", "sad", "happy"] * 100)[["file", "predicted"]].to_csv("predictions.csv")
    card = {
        "name": "Documents",
        "data": {"path": "faces/faces.csv", "image": "file", "label": "expression"},
        "groups": {"gender": {"column": "gender", "reference": "male"}},
        "model": {"name": "predictions", "path": "predictions.csv", "classes": ["sad", "happy"]},
        "audit": {"bootstrap": 200, "permutations": 200},
    }
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    return tmp_path


def write_review(run: Path) -> None:
    """Write what the page of a run saves once somebody has decided."""
    finding = va.open_run(run).findings[0].id
    decision = {"finding": finding, "decision": "accept", "name": "R. Viewer", "role": "auditor", "reason": "seen"}
    digest = hashlib.sha256((run / "audit.json").read_bytes()).hexdigest()
    review = {"audit_sha256": digest, "decisions": [decision | {"decided": "2026-01-31T12:00:00Z"}]}
    Path("review.json").write_text(json.dumps(review), encoding="utf-8")


@pytest.mark.usefixtures("no_pdf")
def test_commands_of_the_documents_run(place: Path, invoke: Invoke) -> None:
    words = {"reports/sample": str(ROOT / "reports" / "sample")}
    for command, code in RUN.items():
        said = invoke(*[words.get(word, word) for word in shlex.split(command)[1:]])
        assert said.exit_code == code, f"{command}: {said.output}"
        if command == "vit-audit init photos/table.csv":
            shutil.copy("edited.yaml", "dataset.yaml")
        if command == "vit-audit run dataset.yaml":
            (run,) = (place / "reports").iterdir()
            write_review(run)
            shutil.copytree(run, place / "OLD")
            words |= {"RUN": str(run), "FOLDER": str(run), "NEW": str(run), "FINDING": va.open_run(run).findings[0].id}
    assert va.open_run(place / "COPY").outcome == "DISPARITY FOUND"
    assert va.load_card(place / "first.yaml").data.label == "expression"


def calls(code: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call of a public name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and re.fullmatch(r"va(\.\w+)+", name := ast.unparse(node.func)):
            yield name, node


PYTHON = [(path, content) for path in DOCUMENTS for kind, content in blocks(path) if kind == "python"]
PYTHON += [(path, path.read_text(encoding="utf-8")) for path in GALLERY]
PYTHON += [
    (
        path,
        "\n".join(
            "".join(cell["source"]) for cell in json.loads(path.read_bytes())["cells"] if cell["cell_type"] == "code"
        ),
    )
    for path in sorted((ROOT / "examples").glob("*.ipynb"))
]


@pytest.mark.parametrize(("path", "code"), PYTHON, ids=lambda given: given.name if isinstance(given, Path) else "")
def test_calls_of_the_documents_fit_their_functions(path: Path, code: str) -> None:
    for name, call in calls(code):
        function: Any = va
        for part in name.split(".")[1:]:
            function = getattr(function, part)
        if not isinstance(function, type):
            named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            inspect.signature(function).bind_partial(*([None] * len(call.args)), **named)


CARDS = [
    (path, content)
    for path in DOCUMENTS
    for kind, content in blocks(path)
    if kind == "yaml" and {"data", "groups", "model"} <= yaml.safe_load(content).keys()
]


@pytest.mark.parametrize(("path", "text"), CARDS, ids=lambda given: given.name if isinstance(given, Path) else "")
def test_cards_of_the_documents_load(path: Path, text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(text, encoding="utf-8")
    assert va.load_card(tmp_path / "dataset.yaml").groups


JOBS = [
    yaml.safe_load(content)
    for kind, content in blocks(ROOT / "docs" / "scale.md")
    if kind == "yaml" and "apiVersion" in content
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: str(job["metadata"]["name"]))
def test_jobs_of_kubernetes_call_commands_that_there_are(job: dict[str, Any], tmp_path: Path) -> None:
    """Each pod's command is run, with a program in the place of ours that says what it was given."""
    program = tmp_path / "vit-audit"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    indexed = job["spec"].get("completionMode") == "Indexed"
    count = job["spec"]["completions"] if indexed else 1
    shards = []
    for index in range(count):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | ({"JOB_COMPLETION_INDEX": str(index)} if indexed else {})
        name, *given = subprocess.run(
            container["command"], env=own, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        command = main.get_command(click.Context(main), name)
        assert command is not None
        asked = command.make_context(name, given).params
        assert (asked["run_dir"], asked["wait"]) == (Path("/runs/RUN"), True)
        shards += [asked["shard"]] if indexed else []
    assert [Shard.read(shard) for shard in shards] == [Shard(i + 1, count) for i in range(count) if indexed]
    assert job["spec"].get("parallelism", 1) == count


def test_there_is_a_job_that_works_and_one_that_puts_together() -> None:
    assert [job["metadata"]["name"] for job in JOBS] == ["audit-work", "audit-merge"]


def test_llms_txt_names_every_page() -> None:
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)#]+)\)", text)
    assert {path.relative_to(ROOT).as_posix() for path in DOCUMENTS} == set(named) - {"CHANGELOG.md"}
    assert (ROOT / "CHANGELOG.md").is_file()
    assert len(named) == len(set(named))


def test_every_example_report_that_is_made_is_shown_once() -> None:
    tree = ast.parse((ROOT / "docs" / "_ext" / "example_reports.py").read_text(encoding="utf-8"))
    (made,) = [n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "EXAMPLES"]
    assert isinstance(made, ast.Dict)
    shown = re.findall(r"```\{example-report\} (\w+)", (ROOT / "docs" / "reports.md").read_text(encoding="utf-8"))
    assert shown == [ast.literal_eval(key) for key in made.keys if key is not None]
    assert len(shown) == len(set(shown)) >= 4


def test_pictures_are_of_the_sample() -> None:
    sample = hashlib.sha256((ROOT / "reports" / "sample" / "audit.json").read_bytes()).hexdigest()
    pictures = [path for path in (ROOT / "docs" / "pictures").iterdir() if path.suffix in (".svg", ".png")]
    assert len(pictures) >= 3
    for path in pictures:
        assert sample.encode() in path.read_bytes(), f"{path.name}: python docs/pictures/draw.py"
