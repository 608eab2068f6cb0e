"""Where the gaps of real models on photographs run: what carries them, who writes them, what training put there.

    python benchmarks/ledgers/run.py --shared ../shared --work DIR     # an hour or more on 2 cores; resumes
    python benchmarks/ledgers/run.py --shared ../shared --work DIR --case expressions

Each case is a whole audit. Models, photographs and labels are real; in the one that says so an association is planted,
by thinning out two cells of what the model is trained on.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torchvision import transforms as tv  # noqa: E402

import vit_audit as va  # noqa: E402
from audit.pipeline.derive import derive  # noqa: E402
from benchmarks.preprocessing.run import fer2013  # noqa: E402
from benchmarks.whole_audit.run import VIT, Watch, card  # noqa: E402

OUT = Path(__file__).with_name("results.json")
CLASSES = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
WHOLE = [tv.Resize((48, 48))]
CENTRAL = [tv.Resize(60), tv.CenterCrop(48)]
MOST_IMAGES = 800
LISTED = 5  # families and parts of a ledger that are kept


def ages(shared: Path) -> va.Plan:
    """Plan an audit of ages: a ViT-S whose last six blocks are trained."""
    return va.plan(card(shared, MOST_IMAGES))


def expressions(shared: Path) -> va.Plan:
    """Plan an audit of expressions: the same model, on news photographs."""
    return va.plan(
        va.Card.model_validate(
            {
                "name": "Happiness in news photographs",
                "data": {
                    "path": str(shared / "data" / "expressions" / "faces.csv"),
                    "label": "expression",
                    "labels": ["neutral", "happiness"],
                    "subject": "person",
                },
                "groups": {"gender": {"column": "gender", "reference": "male"}},
                "model": {
                    "name": VIT,
                    "weights": str(shared / "weights" / f"{VIT}.fp16.safetensors"),
                    "image_size": 98,
                    "train_blocks": 6,
                },
                "audit": {"outcomes": ["happiness"], "max_images": MOST_IMAGES},
            }
        )
    )


def published(shared: Path, cut: list[Any]) -> va.Plan:
    """Plan an audit of the published classifier, with a cut of its own."""
    folder = shared / "data" / "expressions"
    faces = pd.read_csv(folder / "faces.csv", dtype=str)
    faces = faces[faces["expression"].isin(["happiness", "neutral"]) & faces["gender"].isin(["female", "male"])]
    seen = tv.Compose([*cut, tv.ToTensor(), tv.Normalize([0.5], [0.5])])
    module = fer2013(shared)
    module.linear = nn.Sequential(*list(module.get_submodule("linear").children())[:-1])  # logits, without the sigmoid
    net = va.wrap(
        module, CLASSES, stages=[f"conv_{i}" for i in range(1, 5)], mean=[0.5], std=[0.5], image_size=48,
        channels=1, preprocess=va.Preprocess(seen), output="sigmoid", decision="argmax",
    )  # fmt: skip
    data = va.Data.from_frame(
        faces, images="image", label="expression", groups={"gender": "gender"}, subject="person", root=folder
    )
    settings = {"name": "Published", "audit": {"outcomes": ["happiness"], "max_images": MOST_IMAGES}}
    return va.plan(settings, net, data)


def actions(shared: Path, labels: list[str], plant: list[dict[str, Any]] | None = None) -> va.Plan:
    """Plan an audit of what people do, by gender, age being matched on; the first of the labels is the outcome."""
    return va.plan(
        va.Card.model_validate(
            {
                "name": f"{labels[0].capitalize()} in photographs of people",
                "task": "action",
                "data": {
                    "path": str(shared / "data" / "flickr-actions" / "actions.csv"),
                    "label": "group_of_actions",
                    "labels": labels,
                    "shares": {"train": 0.4, "discovery": 0.3, "confirmation": 0.3},
                    "plant": plant or [],
                },
                "groups": {"gender": {"column": "gender", "reference": "male"}},
                "match_on": ["age"],
                "model": {
                    "name": VIT,
                    "weights": str(shared / "weights" / f"{VIT}.fp16.safetensors"),
                    "image_size": 98,
                    "train_blocks": 6,
                },
                "training": {"epochs": 8},  # some 400 photographs
                "audit": {"outcomes": labels[:1]},
            }
        )
    )


RARE = [  # what is known of the planted case: few women do sport where the model learns, and few men are still
    {"attribute": "gender", "group": "female", "label": "sport", "keep": 0.1},
    {"attribute": "gender", "group": "male", "label": "still", "keep": 0.1},
]
CASES: dict[str, Callable[[Path], va.Plan]] = {
    "ages": ages,
    "expressions": expressions,
    "fer2013_cnn, whole image": lambda shared: published(shared, WHOLE),
    "fer2013_cnn, central 80%": lambda shared: published(shared, CENTRAL),
    "sport or still": lambda shared: actions(shared, ["sport", "still"]),
    "sport or still, planted": lambda shared: actions(shared, ["sport", "still"], RARE),
    "move or still": lambda shared: actions(shared, ["move", "still"]),
}


def told(result: va.Result) -> dict[str, Any]:
    """Return what is kept of an audit, as this code judges what was measured."""
    folder = result.folder
    record = result.record.model_validate(result.record.model_dump(mode="json") | derive(folder, result.record))

    def rows(name: str) -> list[dict[str, Any]]:
        return [row.model_dump(mode="json") for row in getattr(record, name)]

    lines = map(json.loads, (result.folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    stages = {line["stage"]: line["seconds"] for line in lines if "stage" in line}
    families = [row for row in rows("ledger") if row["level"] == "family"]
    by_layer = [row for row in rows("ledger") if row["level"] == "layer"]
    return {
        "outcome": str(result.outcome),
        "images": record.data.images,
        "gaps": [
            row for row in rows("contrasts") if row["metric"] == "standardised_gap" and row["state"] == "disparity"
        ],
        "asked": [row for row in rows("contrasts") if row["metric"] == "standardised_gap"],
        "accuracy": [row for row in rows("accuracy") if not row["attribute"]],
        "reasons": rows("reasons"),
        "localisation": {key: str(where.status) for key, where in record.localisation.items()},
        "heads_confirmed": {key: len(where.heads) for key, where in record.localisation.items()},
        "answers": rows("answers"),
        "smallest": rows("smallest"),
        "carried": rows("carried"),
        "written_totals": rows("ledgers"),
        "written_families": families,
        "written_layers": sorted(by_layer, key=lambda row: -abs(row["gap"]["value"] or 0))[: 2 * LISTED],
        "trained_totals": rows("trained"),
        "trained": [row for row in rows("trained_parts") if row["order"] == "all orders"],
        "seconds_by_stage": stages,
        "figures_verified": result.verify().figures,
    }


def made_with() -> dict[str, Any]:
    """Return with what a case was run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "code": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__},
    }


@click.command()
@click.option(
    "--shared", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of data and weights."
)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="The runs lie there; they resume.")
@click.option("--case", "only", type=click.Choice(list(CASES)), multiple=True, help="These; others stay as they are.")
@click.option("--judge-again", is_flag=True, help="Measure nothing; judge what finished runs hold by this code.")
@click.option("--json", "out", type=click.Path(path_type=Path), default=OUT, help="The results.")
def main(shared: Path, work: Path, only: tuple[str, ...], judge_again: bool, out: Path) -> None:
    """Audit, and keep what the ledgers say."""
    for number, (name, plan) in enumerate(CASES.items()):
        if only and name not in only:
            continue
        kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"cases": {}}
        folder = work / f"case-{number}"
        if judge_again:
            before = kept["cases"][name]
            measured = {key: before[key] for key in ("seconds_by_step", *made_with())}
            kept["cases"][name] = told(va.open_run(folder)) | measured | {"judged_with": made_with()["code"]}
        else:
            watch = Watch()
            result = va.audit(plan(shared.resolve()), folder, report=False, callback=watch)
            watch.note()
            steps = {step: round(taken, 1) for step, (taken, _) in watch.seconds.items() if taken >= 1}
            kept["cases"][name] = told(result) | {"seconds_by_step": steps} | made_with()
        out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        click.echo(f"{name}: {[row['level'] for row in kept['cases'][name]['answers']]}")


if __name__ == "__main__":
    main()
