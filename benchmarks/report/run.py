"""Time what printing a report takes: the sample, and the largest that it is made for.

python benchmarks/report/run.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

from audit.records import Audit  # noqa: E402
from audit.report.render import load_audit, render_run  # noqa: E402
from tests.report.examples import large  # noqa: E402


def timed(audit: Audit) -> dict[str, float]:
    """Print every file of an audit; return the seconds, and the size of page and PDF in MB."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        (run / "audit.json").write_text(audit.model_dump_json(), encoding="utf-8")
        begun = time.perf_counter()
        render_run(run)
        seconds = time.perf_counter() - begun
        sizes = {f"{kind}_mb": (run / f"report.{kind}").stat().st_size / 1e6 for kind in ("html", "pdf")}
    return {"findings": len(audit.findings), "heads": len(audit.heads), "seconds": round(seconds, 1), **sizes}


if __name__ == "__main__":
    sample = load_audit(ROOT / "reports" / "sample" / "audit.json")
    print(json.dumps({"sample": timed(sample), "largest": timed(large())}, indent=1))
