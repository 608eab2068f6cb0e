"""Peak memory of each part of an audit, at so many images and at ten times as many."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("check", "training", "sweep", "ledgers", "statistics", "verify")
OF_STEP = {"training": "training", "patching": "sweep", "ledger": "ledgers"}  # by what a step is called
BANK, SIDE = 512, 64  # faces that are drawn, and pixels of a side
CARD: dict[str, Any] = {
    "name": "Flat memory",
    "data": {
        "path": "faces.csv", "image": "image", "label": "expression", "cache": "none",
        "labels": ["neutral", "smiling"],
    },
    "groups": {"skin_tone": {"column": "skin_tone", "reference": "lighter"}},
    "model": {
        "name": "vit_tiny_patch16_224", "weights": "rendered", "image_size": SIDE,
        "overrides": {"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
    },
    "training": {"seeds": [0], "epochs": 1, "learning_rate": 1e-3, "balanced_seeds": 0},
    "controls": {
        "card": "rendered", "train_images": 400, "eval_images": 96, "base_epochs": 12, "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200, "patches": "all"},
}  # fmt: skip


def write_images(folder: Path, images: int) -> None:
    """Write rendered faces, each shifted and lit in its own way, with their table and card."""
    import pandas as pd
    import yaml

    from audit.data.synthetic.sampling import sample_faces

    (folder / "faces").mkdir(parents=True)
    bank = sample_faces(BANK, 0, association=0.9, attribute="skin_tone", split="train")
    places = [range(start, min(start + 1000, images)) for start in range(0, images, 1000)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write, folder, bank), places))
    names = [f"faces/{i:07d}.jpg" for i in range(images)]
    faces = bank.iloc[[i % BANK for i in range(images)]].reset_index(drop=True)
    table = pd.DataFrame({"image": names, "expression": faces["expression"], "skin_tone": faces["skin_tone"]})
    table.to_csv(folder / "faces.csv", index=False)
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")


def _write(folder: Path, bank: Any, places: range) -> None:
    import numpy as np
    from PIL import Image

    from audit.data.synthetic import SyntheticSource

    source = SyntheticSource(bank)
    drawn = {key: np.asarray(source.open(key), dtype=np.int16) for key in bank["image"]}
    keys = list(drawn)
    for i in places:
        rng = np.random.default_rng(i)
        moved = np.roll(drawn[keys[i % BANK]], rng.integers(-3, 4, 2), axis=(0, 1)) + rng.integers(-12, 13, 3)
        jittered = np.clip(moved + rng.integers(-4, 5, moved.shape), 0, 255).astype(np.uint8)
        Image.fromarray(jittered).save(folder / "faces" / f"{i:07d}.jpg", quality=85)


def measure(work: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    """Run every part at both sizes, each in a process of its own, and compare their peaks."""
    found = {str(images): _peaks(work / str(images), images) for images in sizes}
    small, large = (found[str(images)]["mb"] for images in sizes)
    return {
        "memory_ratio_10x": {stage: round(large[stage] / small[stage], 3) for stage in STAGES if small[stage]},
        "peaks": found,
    }


def _peaks(folder: Path, images: int) -> dict[str, Any]:
    begun = time.monotonic()
    write_images(folder, images)
    minutes = {"images": round((time.monotonic() - begun) / 60, 1)}
    mb: dict[str, float] = {}
    for part in ("check", "run", "statistics", "verify"):
        begun = time.monotonic()
        told = _child(part, folder)
        minutes[part] = round((time.monotonic() - begun) / 60, 1)
        mb |= {part: told["mb"]} if "mb" in told else told
    return {"mb": mb, "minutes": minutes}


def _child(stage: str, folder: Path) -> dict[str, Any]:
    """Run a part in a process of its own; what it prints last is its peak, in MB."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.scale.flat", stage, str(folder)]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    print(f"{folder.name} {stage}: {told}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return told


def run_stage(stage: str, folder: Path) -> dict[str, float]:
    """Run a part here, and return its peak, in MB."""
    import vit_audit as va

    if stage == "check":
        from audit.terminal import data_summary

        plan = va.plan(folder / "card.yaml")
        print(data_summary(plan.data, plan.card.name, plan.preprocessing, plan.held))
    elif stage == "run":
        watched = Watched()
        va.audit(va.plan(folder / "card.yaml"), folder / "run", callback=watched, device="cpu")
        return watched.peaks()
    elif stage == "statistics":
        from audit.pipeline.derive import derive
        from audit.report import load_audit

        print(len(derive(folder / "run", load_audit(folder / "run" / "audit.json"))["heads"]), "heads")
    else:
        found = va.verify(folder / "run")
        print("holds" if found.holds else found.faults)
    return {"mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


class Peak:
    """The peak of this process since it was asked to begin."""

    def __init__(self) -> None:
        self.begin()

    @staticmethod
    def begin() -> None:
        """Reset the peak."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    @staticmethod
    def mb() -> float:
        """Return the peak in MB."""
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024, 1)


class Watched:
    """Notes the peak of this process, or of a worker if it is higher, as the run tells of its steps."""

    def __init__(self) -> None:
        self._step, self._peak, self._mb = "", Peak(), dict.fromkeys(OF_STEP.values(), 0.0)

    def __call__(self, step: str, _done: int, _total: int) -> None:
        if step != self._step:
            self._note()
            self._step = step

    def _note(self) -> None:
        stage = OF_STEP.get(self._step.split(":")[0])
        if stage is not None:
            self._mb[stage] = max(self._mb[stage], self._peak.mb(), _highest_of_workers())
        self._peak.begin()

    def peaks(self) -> dict[str, float]:
        """Return the peaks, in MB."""
        self._note()
        return self._mb


def _highest_of_workers() -> float:
    """Return the highest peak among the processes that have ended so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    print(json.dumps(run_stage(sys.argv[1], Path(sys.argv[2]))))
