"""What a release is made of: its wheel and sdist, and an environment that holds what it needs but not this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling import build; print(getattr(build, 'build_' + sys.argv[1])(sys.argv[2]))"


def built(kind: str, folder: Path, source: Path = ROOT) -> Path:
    """Build the wheel or the sdist of a folder as pip has it done, without an environment of its own."""
    pytest.importorskip("hatchling", reason="make setup installs it")
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", tmp_path_factory.mktemp("sdist"))


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees the packages installed here, but for this one."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def run(
        self, *command: str | Path, folder: Path, given: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, with nothing of the checkout in its path."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIT_AUDIT", "PIP_"))
        }
        paths = {"PATH": f"{self.bin}:{os.environ['PATH']}", "VIT_AUDIT_CACHE": str(self.folder / "cache")}
        return subprocess.run(
            [str(word) for word in command], cwd=folder, env={**kept, **paths, **given}, capture_output=True, text=True
        )


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Make one; what it shows of the packages here are links, of which none leads to this checkout."""
    folder, shown = tmp_path / "venv", tmp_path / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    shown.mkdir()
    places = [Path(place) for place in sys.path if Path(place).name == "site-packages"]
    for entry in (entry for place in places for entry in place.iterdir()):
        if "vit_audit" not in entry.name and entry.suffix != ".pth" and not (shown / entry.name).is_symlink():
            (shown / entry.name).symlink_to(entry)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "shown.pth").write_text(f"{shown}\n", encoding="utf-8")
    return Environment(folder)
