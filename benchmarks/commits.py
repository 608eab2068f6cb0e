"""Which code a benchmark has run."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit_here() -> str:
    """Return the commit that is checked out, shortened; "" where git knows none."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
