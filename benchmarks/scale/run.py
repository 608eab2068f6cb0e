"""How an audit grows with its data: peak memory at ten times the images.

python benchmarks/scale/run.py                     # the published size: 20,000 and 200,000 images
python benchmarks/scale/run.py --images 10000      # and ten times as many, where there is less time
python benchmarks/scale/run.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

from benchmarks.scale.flat import measure  # noqa: E402

FULL, QUICK = 20_000, 2_000  # images, and ten times as many


def _about() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "code": commit.stdout.strip(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Measure, and print or write the result; fields of the file that are not measured here are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--images", type=int, default=FULL, help="of the smaller data; the larger are ten times as many"
    )
    parser.add_argument("--quick", action="store_true", help=f"--images {QUICK}")
    parser.add_argument("--json", type=Path, help="write the result there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        images = QUICK if asked.quick else asked.images
        result = {**measure(Path(place), (images, 10 * images)), **_about()}
    kept = json.loads(asked.json.read_bytes()) if asked.json is not None and asked.json.is_file() else {}
    text = json.dumps({**kept, "flat": result, "memory_ratio_10x": result.pop("memory_ratio_10x")}, indent=1) + "\n"
    if asked.json is not None:
        asked.json.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
