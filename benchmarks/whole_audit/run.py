"""How long a whole audit of real photographs takes, and where the minutes go.

    python benchmarks/whole_audit/run.py --shared ../shared --json benchmarks/whole_audit/results.json
    python benchmarks/whole_audit/run.py --shared ../shared --json benchmarks/whole_audit/results.json --precision bf16

Faces of UTKFace (``utkface-ages/``: 9,002 photographs of people over or under 40), a ViT-S of DINOv2 at 98 px whose
last six blocks are fine-tuned, one attribute, 800 recipients per split, all 72 heads; nothing is in the cache before.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import torch  # noqa: E402

import vit_audit as va  # noqa: E402
from benchmarks.commits import commit_here  # noqa: E402

VIT = "vit_small_patch14_dinov2"


def card(shared: Path, most_images: int) -> va.Card:
    """Return what is audited."""
    return va.Card.model_validate(
        {
            "name": "Over 40 in photographs of faces",
            "data": {
                "path": str(shared / "data" / "utkface-ages" / "ages.csv"),
                "label": "band",
                "labels": ["under 40", "over 40"],
            },
            "groups": {"gender": {"column": "gender", "reference": "male"}},
            "model": {
                "name": VIT,
                "weights": str(shared / "weights" / f"{VIT}.fp16.safetensors"),
                "image_size": 98,
                "train_blocks": 6,
            },
            "audit": {"outcomes": ["over 40"], "max_images": most_images},
        }
    )


class Watch:
    """Adds up the seconds, by the clock and of processors, of every step that a run tells of."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._step, self._begun = "opening", (time.monotonic(), _busy())

    def __call__(self, step: str, _done: int, _total: int) -> None:
        if step != self._step:
            self.note()
            self._step = step

    def note(self) -> None:
        """Count the time since the last step began as that step's."""
        now = (time.monotonic(), _busy())
        for place in (0, 1):
            self.seconds[self._step][place] += now[place] - self._begun[place]
        self._begun = now


def _busy() -> float:
    """Return the seconds of processors that this process and those that it has waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(shared: Path, most_images: int, work: Path, precision: str) -> dict[str, Any]:
    """Audit once, and return where the time went."""
    os.environ["VIT_AUDIT_CACHE"] = str(work / "cache")
    load, begun, watch = os.getloadavg(), time.monotonic(), Watch()
    result = va.audit(va.plan(card(shared, most_images)), work / "run", precision=precision, callback=watch)
    watch.note()
    whole = time.monotonic() - begun
    record = json.loads((work / "run" / "audit.json").read_bytes())
    lines = (work / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    stages = {row["stage"]: row["seconds"] for row in map(json.loads, lines) if "stage" in row}
    steps = {name: [round(s, 1) for s in pair] for name, pair in watch.seconds.items() if max(pair) >= 1}
    return {
        "minutes": round(whole / 60, 1),
        "processor_minutes": round(sum(pair[1] for pair in watch.seconds.values()) / 60, 1),
        "seconds_by_stage": stages,
        "seconds_by_step": steps,
        "outcome": str(result.outcome),
        "effort": record["method"]["effort"],
        "localisation": {name: row["status"] for name, row in record["localisation"].items()},
        "heads_found": len({tuple(head) for row in record["method"]["effort"] for head in row["found"]}),
        "most_images": most_images,
        "load_average_before": [round(v, 1) for v in load],
    }


@click.command()
@click.option(
    "--shared", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of data and weights."
)
@click.option("--most-images", default=800, show_default=True, help="Recipients per split.")
@click.option("--precision", type=click.Choice(["float32", "bf16"]), default="float32", show_default=True)
@click.option(
    "--json", "out", type=click.Path(path_type=Path), help="Write the result there, beside the other precision's."
)
@click.option("--work", type=click.Path(path_type=Path), help="Keep the run there; it resumes.")
def main(shared: Path, most_images: int, precision: str, out: Path | None, work: Path | None) -> None:
    """Audit the photographs once, and say where the minutes went."""
    with tempfile.TemporaryDirectory() as place:
        found = measure(shared.resolve(), most_images, Path(place) if work is None else work, precision)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "code": commit_here(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__},
    }
    kept = json.loads(out.read_bytes()) if out is not None and out.is_file() else {}
    text = json.dumps({**kept, precision: {**found, **about}}, indent=1) + "\n"
    if out is not None:
        out.write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
