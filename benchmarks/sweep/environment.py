"""Where the race is run: an environment of its own, in which the peers stand, and what it is made of.

Nothing but the standard library is imported here: this runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("nnsight==0.8.1", "pyvene==0.1.8", "transformer-lens==4.3.0")
REPORTED = ("vit-audit", "torch", "timm", "numpy", "transformers", *(peer.partition("==")[0] for peer in PEERS))


def make_environment(work: Path) -> Path:
    """Return the interpreter of the race's own environment; it is made if need be, which takes minutes and 7 GB."""
    folder = work.resolve() / "venv"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = "\n".join((str(ROOT), *PEERS, *project["dependencies"]))
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"installing {', '.join(PEERS)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--editable", str(ROOT), *PEERS], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def is_inside(python: Path) -> bool:
    """Tell whether this process runs in the environment of an interpreter."""
    return Path(sys.prefix).resolve() == python.parents[1]


def versions() -> dict[str, str]:
    """Return the versions of Python and of all that takes part."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in REPORTED}}


def hardware() -> dict[str, str | int | float]:
    """Return the processor's name, the cores that may be used, and the memory in GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": _processor(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1)}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def commit() -> str:
    """Return the checkout's commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
