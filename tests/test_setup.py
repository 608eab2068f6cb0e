"""What make installs: torch for the CPU where there is no NVIDIA GPU and its index answers, and a line that says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(shutil.which("make") is None or sys.platform != "linux", reason="set up with make, on Linux"),
]
ROOT = Path(__file__).parent.parent
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
NOWHERE = "http://127.0.0.1:9/whl/cpu"  # nothing listens there
PYTHON = """#!/bin/sh
case "$*" in
  "-m pip --version") exit 0 ;;
  "-m pip install"*) echo "python $*" ;;
  *) exec {python} "$@" ;;
esac
"""


OLD = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m "*) echo "python $*" ;;
  *) exec {python} "$@" ;;
esac
"""


class Answers(BaseHTTPRequestHandler):
    """An index that knows torch."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
    server.shutdown()
    server.server_close()


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def set_up(folder: Path, wheels: str, stamp: str = ".installed") -> list[str]:
    """Make the environment with a Python that installs nothing, and return what is printed."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    program(folder / ".venv" / "bin" / "python", PYTHON.format(python=sys.executable))
    paths = os.environ["PATH"] if not (folder / "gpu").is_dir() else f"{folder / 'gpu'}:{os.environ['PATH']}"
    command = ["make", "--silent", f".venv/{stamp}", f"PYTHON={sys.executable}", f"CPU_WHEELS={wheels}"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": paths, "no_proxy": "*", "MAKEFLAGS": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (folder / ".venv" / stamp).is_file()
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA GPU")
def test_without_a_gpu_torch_comes_from_the_cpu_index_where_it_answers(tmp_path: Path, index: str) -> None:
    said = set_up(tmp_path, index)
    assert "torch for the CPU: about 500 MB" in said[-3]
    asked = [d for d in DEPENDENCIES if re.match(r"torch(vision)?[<>=]", d)]
    assert len(asked) == 2
    # Of two indices pip takes the later version, so torch comes from that one alone.
    assert said[-2] == f"python -m pip install --disable-pip-version-check --index-url {index} {' '.join(asked)}"
    assert said[-1] == "python -m pip install --disable-pip-version-check --editable ."


@pytest.mark.parametrize("where", ["no GPU, no network", "a GPU"])
def test_otherwise_from_where_pip_looks_by_itself(where: str, tmp_path: Path, index: str) -> None:
    if where == "a GPU":
        program(tmp_path / "gpu" / "nvidia-smi", "#!/bin/sh\n")
    said = set_up(tmp_path, index if where == "a GPU" else NOWHERE)
    assert "torch with CUDA: about 3 GB" in said[-2]
    assert said[-1] == "python -m pip install --disable-pip-version-check --editable ."


def test_tests_need_more_than_the_demonstration(tmp_path: Path) -> None:
    said = set_up(tmp_path, NOWHERE, ".installed-dev")
    assert [line for line in said if line.startswith("python ")] == [
        "python -m pip install --disable-pip-version-check --editable .",
        "python -m pip install --disable-pip-version-check --editable .[dev]",
    ]
    (tmp_path / ".venv" / "bin" / "vit-audit").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / ".venv" / "bin" / "vit-audit").chmod(0o755)
    (tmp_path / ".venv" / ".installed-dev").unlink()
    command = ["make", "--silent", "demo", f"PYTHON={sys.executable}", "PANGO="]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "MAKEFLAGS": ""}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")  # all that it needs is there, and nothing else is fetched
    assert not (tmp_path / ".venv" / ".installed-dev").exists()


def test_the_oldest_versions_are_installed_with_every_extra_that_tests_use(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    program(tmp_path / "python", OLD.format(python=sys.executable))
    done = subprocess.run(
        ["make", "--silent", "lowest", f"PYTHON={tmp_path / 'python'}", 'LOWEST_TESTS=-m "unit and not slow"'],
        cwd=tmp_path, env={**os.environ, "MAKEFLAGS": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    install, run = done.stdout.splitlines()[-2:]
    assert install.endswith(
        "--constraint .venv-lowest/constraints.txt --editable .[dev,onnx,hf,clip,excel,repair,sign]"
    )
    assert run.endswith("-m pytest --numprocesses 2 --dist loadfile -m unit and not slow")
    pinned = (tmp_path / ".venv-lowest/constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in pinned)
    names = [line.split("==")[0] for line in pinned]
    assert len(names) == len(set(names))  # dev asks for no other version than the extra of that name
    assert {"torch", "torchvision", "timm", "transformers", "open-clip-torch", "onnxruntime", "openpyxl"} <= set(names)


NIGHT = """#!/bin/sh
case $2 in
  lowest) echo "===== 3 passed, 1 skipped in 2.00s (0:00:02) ====="; echo bye ;;
  long) echo "== 1 failed, 2 passed in 9.00s =="; exit 2 ;;
  docs) echo "900 links in 60 pages lead somewhere" ;;
  *) echo "make: the tests of the page need a browser" >&2; exit 1 ;;
esac
"""


def test_each_nightly_step_runs_whatever_became_of_the_others(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    program(tmp_path / "night", NIGHT)
    done = subprocess.run(
        ["make", "--silent", "nightly", f"MAKE={tmp_path / 'night'}"],
        cwd=tmp_path, env={**os.environ, "MAKEFLAGS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout.splitlines() == [
        "lowest: done, 3 passed, 1 skipped in 2.00s (0:00:02)",
        "long: FAILED, exit code 2, 1 failed, 2 passed in 9.00s",
        "test-browser: FAILED, exit code 1, make: the tests of the page need a browser",
        "docs: done, 900 links in 60 pages lead somewhere",
    ]
