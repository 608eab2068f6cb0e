"""Memory does not grow with the data: ten times the images, and what ten times the images would take is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale.flat import CARD, STAGES

pytestmark = pytest.mark.scale
SMALL, LARGE = 800, 8_000
SIDE = 32
# In a process of its own, whose children have no peak yet.
STEPS = """
import json
import numpy as np
from benchmarks.scale.flat import Watched
watched = Watched()
for step, size in (("training: 1 model", 0), ("patching: heads", 0), ("ledger: who writes", 400), ("report", 0)):
    watched(step, 0, 1)
    held = np.ones(size << 17)
    watched(step, 1, 1)
    del held
print(json.dumps(watched.peaks()))
"""
WORK = """
import json, sys
from pathlib import Path

import numpy as np
from PIL import Image

from audit.card.schema import Card
from audit.data.assemble import samples_from_frame
from audit.data.pixels import ImagesOnDemand, centred_square, mirrored, select
from audit.evidence.effects import lay_out
from audit.evidence.stored_rows import StoredRows
from audit.models.finetune import Recipe, finetune, make_views
from audit.models.predict import predict_logits
from audit.patching.sweep import DonorKind, measure_unpatched, sweep
from audit.pipeline.write_rows import write_sorted
from benchmarks.scale.flat import CARD, Peak
from tests.models_for_tests import tiny
import pandas as pd


class Drawn:
    def open(self, key):
        return Image.new("RGB", (32, 32), (int(key) % 256, 90, int(key) // 256 % 256))


def work(n):
    model, every = tiny(classes=2), np.arange(n)
    columns = {"image": [f"{k:08d}" for k in every], "expression": "neutral", "skin_tone": "lighter"}
    table = pd.DataFrame(columns)
    table.loc[every % 2 == 1, "expression"], table.loc[every % 3 == 1, "skin_tone"] = "smiling", "darker"
    yield "check", lambda: samples_from_frame(table, Drawn(), card=Card.model_validate(CARD))
    images = ImagesOnDemand(Drawn(), range(n), centred_square(32))
    yield "predictions", lambda: predict_logits(model, images)
    views = make_views(model, [images, mirrored(images)], 1, kept_at_most=0)
    recipe = Recipe(1, 64, 1e-4, 0.0, 0.1, seed=0, train_blocks=1)
    yield "training", lambda: finetune(model, views, every % 2, recipe)
    donors = [DonorKind(kind, model, np.roll(every, k + 1)) for k, kind in enumerate(("cross", "placebo"))]
    path = Path(sys.argv[1]) / f"{n}.parquet"
    about = {"side": np.where(every % 2, "group", "reference"), "label": "smile", "unit": every // 2}
    plan = pd.DataFrame(about)

    def block(rows):
        given = [DonorKind(kind.name, model, kind.rows[rows]) for kind in donors]
        found = sweep(model, images, rows, given, layers=range(1, 2), outcomes={"smile": 1})
        return found.assign(position=rows[found["position"]]).join(plan, on="position")

    def swept():
        parts = (block(every[start : start + 32]) for start in range(0, n, 32))
        write_sorted(path, [parts], ["position", "layer", "head", "donor_kind"], rows_at_once=4096)

    yield "sweep", swept
    own = measure_unpatched(model, images, every, {"smile": 1})
    subjects = pd.Series(every.astype(str))
    yield "statistics", lambda: lay_out(StoredRows([path]), own, subjects, "smile")


peak, mb = Peak(), {}
for n in (int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[3])):  # what the first use takes is no part of it
    for name, do in work(n):
        peak.begin()
        before = peak.mb()
        do()
        mb.setdefault(name, []).append(peak.mb() - before)
print(json.dumps({name: peaks[1:] for name, peaks in mb.items()}))
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
def test_ten_times_the_images_take_no_more_memory(tmp_path: Path) -> None:
    """The pixels alone would take 21 MB more."""
    command = [sys.executable, "-c", WORK, str(tmp_path), str(SMALL), str(LARGE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout)
    assert set(peaks) == {"check", "predictions", "training", "sweep", "statistics"}
    grown = {name: large - small for name, (small, large) in peaks.items()}
    assert max(grown.values()) < (LARGE - SMALL) * SIDE * SIDE * 3 / 2**20, grown


def test_the_measurement_holds_no_images_and_covers_the_stages() -> None:
    assert CARD["data"]["cache"] == "none"
    assert STAGES == ("check", "training", "sweep", "ledgers", "statistics", "verify")


def test_the_peak_of_each_stage_is_that_of_its_steps() -> None:
    """What is held while a ledger's step is the last that was told, its statistics too, is the ledgers'."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert set(found) == {"training", "sweep", "ledgers"}
    assert found["ledgers"] > found["sweep"] + 200  # the rest may lie in what was freed before
