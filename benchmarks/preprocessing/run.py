"""What wrong preprocessing does to a gap between groups: three real models, each under several pipelines.

    python benchmarks/preprocessing/run.py --shared ../shared     # 15 minutes on 2 cores; resumes model by model

Weights, photographs and labels stay the same; only what is done to an image before the model sees it differs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torchvision import transforms as tv  # noqa: E402

import vit_audit as va  # noqa: E402
from audit import __version__  # noqa: E402
from audit.card.schema import ModelSpec, PreprocessSpec  # noqa: E402
from audit.data.pixels import load_pixels  # noqa: E402
from audit.data.sources import FileSource  # noqa: E402
from audit.models.build import Backbone  # noqa: E402
from audit.models.finetune import Recipe, finetune, make_views  # noqa: E402
from audit.models.predict import predict_logits  # noqa: E402
from audit.models.preprocessing import preprocessing_of  # noqa: E402
from audit.store import write_text  # noqa: E402
from benchmarks.commits import commit_here  # noqa: E402

SEED = 3
RESAMPLES = 2000
SIDE = 98
VIT = "vit_small_patch14_dinov2"
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
PIPELINES: dict[str, PreprocessSpec | str] = {
    "deployed": "deployed",
    "legacy": "legacy",
    "central 80%": PreprocessSpec(resize=122, crop=SIDE),
    "nearest instead of bicubic": PreprocessSpec(crop=SIDE, interpolation="nearest"),
    "another mean and std": PreprocessSpec(crop=SIDE, **HALF),
}
EMOTIONS = ["Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"]


@dataclass(frozen=True)
class Case:
    """A model, its images, and the question."""

    name: str
    folder: str
    table: str
    label: str
    positive: str
    subject: str | None
    train: int  # images that a model is fine-tuned on; 0: the model is as published


CASES = (
    Case("fer2013_cnn, happy", "expressions", "faces.csv", "expression", "happiness", "person", 0),
    Case("ViT-S, happy", "expressions", "faces.csv", "expression", "happiness", "person", 1200),
    Case("ViT-S, over 40", "utkface-ages", "ages.csv", "band", "over 40", None, 1200),
)


def table_of(case: Case, shared: Path) -> pd.DataFrame:
    """Return the images of two labels and two genders, one row each."""
    frame = pd.read_csv(shared / "data" / case.folder / case.table)
    if case.folder == "expressions":
        frame = frame[frame[case.label].isin(["neutral", "happiness"])]
    frame = frame[frame["gender"].isin(["female", "male"])].reset_index(drop=True)
    subject = frame[case.subject].astype(str) if case.subject else frame["image"]
    return frame.assign(subject=subject, truth=frame[case.label] == case.positive)


def fer2013(shared: Path) -> nn.Module:
    """Build the published classifier, of whose layers the data's own README tells."""
    sizes = ((1, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2))
    parts: dict[str, nn.Module] = {
        f"conv_{i}": nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3, s), nn.BatchNorm2d(b), nn.ReLU())
        for i, (a, b, s) in enumerate(sizes, start=1)
    }
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Sequential(nn.Linear(9216, 256), nn.ReLU(), nn.Linear(256, 7), nn.Sigmoid())
    model = nn.Sequential(OrderedDict(parts))
    model.load_state_dict(load_file(shared / "weights" / "fer2013_cnn.safetensors"))
    return model.eval()


def gray_pipelines() -> dict[str, Callable[[Image.Image], torch.Tensor]]:
    """Return the published transform, and wrong ones."""
    last = [tv.ToTensor(), tv.Normalize([0.5], [0.5])]
    nearest = tv.InterpolationMode.NEAREST
    return {
        "deployed": tv.Compose([tv.Resize((48, 48)), *last]),
        "legacy": tv.Compose([tv.Resize(48, tv.InterpolationMode.BICUBIC), tv.CenterCrop(48), *last]),
        "central 80%": tv.Compose([tv.Resize(60), tv.CenterCrop(48), *last]),
        "nearest instead of bilinear": tv.Compose([tv.Resize((48, 48), nearest), *last]),
        "not normalised": tv.Compose([tv.Resize((48, 48)), tv.ToTensor()]),
    }


@torch.inference_mode()
def of_fer2013(frame: pd.DataFrame, folder: Path, shared: Path) -> dict[str, npt.NDArray[np.bool_]]:
    """Return by pipeline which images are called happy."""
    model, images = fer2013(shared), []
    for name in frame["image"]:
        with Image.open(folder / name) as opened:
            images.append(opened.convert("L"))
    called = {}
    for name, transform in gray_pipelines().items():
        scores = [
            model(torch.stack([transform(i) for i in images[at : at + 256]])) for at in range(0, len(images), 256)
        ]
        called[name] = torch.cat(scores).argmax(dim=1).numpy() == EMOTIONS.index("Happy")
    return called


def of_vit(frame: pd.DataFrame, folder: Path, shared: Path) -> dict[str, npt.NDArray[np.bool_]]:
    """Fine-tune a ViT through the deployed pipeline; return by pipeline which of the other images get the outcome."""
    spec = ModelSpec(name=VIT, image_size=SIDE, weights="file")
    backbone = Backbone(spec, shared / "weights" / f"{VIT}.fp16.safetensors")
    model, source = backbone.build(2, seed=SEED), FileSource(folder)
    train = frame[frame["split"] == "train"]
    pixels = load_pixels(source, train["image"].tolist(), preprocessing_of(spec, model).geometry)
    recipe = Recipe(3, 32, 3e-4, 0.05, 0.1, SEED, train_blocks=3)
    flipped = np.ascontiguousarray(pixels[:, :, ::-1])
    finetune(model, make_views(model, [pixels, flipped], 3), train["truth"].to_numpy(dtype=np.int64), recipe)
    keys, called, usual = frame.loc[frame["split"] == "test", "image"].tolist(), {}, dict(model.pretrained_cfg)
    for name, stated in PIPELINES.items():
        changed = spec.model_copy(update={"preprocess": stated})
        own = HALF if name == "another mean and std" else {k: usual[k] for k in ("mean", "std")}
        model.pretrained_cfg = {**usual, **own}
        geometry = preprocessing_of(changed, model).geometry
        called[name] = predict_logits(model, load_pixels(source, keys, geometry)).argmax(axis=1) == 1
    return called


def gaps_of(frame: pd.DataFrame, called: dict[str, npt.NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """Return a row for each pipeline: rates, gaps with intervals, and the change from the deployed one, by person."""
    rows = []
    truth, positive = frame["truth"].to_numpy(), {True: "yes", False: "no"}
    weights = resampled_subjects(frame["subject"])
    is_woman = (frame["gender"] == "female").to_numpy()
    base = {m: gap_draws(called["deployed"], truth, is_woman, weights, m) for m in ("tpr", "selection")}
    for name, answers in called.items():
        found = va.disparity(
            [positive[value] for value in truth.tolist()],
            [positive[value] for value in answers.tolist()],
            frame["gender"],
            frame["subject"].to_numpy(),
            reference="male",
        )
        gaps = found.gaps.to_frame().set_index("metric")
        rates = found.rates.to_frame().set_index("group")
        row: dict[str, Any] = {"pipeline": name, "accuracy": float((answers == truth).mean())}
        row["rates"] = json.loads(rates.select_dtypes("number").to_json(orient="index"))
        row["gaps"] = json.loads(gaps[["estimate", "estimate_low", "estimate_high"]].to_json(orient="index"))
        row["changed_answers"] = float((answers != called["deployed"]).mean())
        for metric, draws in base.items():
            value, own = gap_draws(answers, truth, is_woman, weights, metric)
            low, high = np.percentile(own - draws[1], [2.5, 97.5])
            change = {"estimate": value - draws[0], "low": float(low), "high": float(high)}
            row[f"change_{metric}"] = change if name != "deployed" else None
            row[f"gap_{metric}"] = value
        rows.append(row)
    return rows


def resampled_subjects(subject: pd.Series) -> npt.NDArray[np.float64]:
    """Return weights (resamples, images): how often each person is drawn, the same for every pipeline."""
    codes, people = pd.factorize(subject)
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=RESAMPLES)
    return drawn[:, codes].astype(np.float64)


def gap_draws(
    called: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    is_woman: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
    metric: str,
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return women's rate minus men's, and that of every resample."""
    counted = truth if metric == "tpr" else np.ones_like(truth)
    sides = [counted & is_woman, counted & ~is_woman]
    value = float(called[sides[0]].mean() - called[sides[1]].mean())
    rates = [(weights[:, side] @ called[side]) / weights[:, side].sum(axis=1) for side in sides]
    return value, rates[0] - rates[1]


def measure(case: Case, shared: Path) -> dict[str, Any]:
    """Measure one model under all its pipelines."""
    frame, folder = table_of(case, shared), shared / "data" / case.folder
    people = frame["subject"].drop_duplicates().sample(frac=1, random_state=SEED)
    first = frame.groupby("subject").size().loc[people].cumsum() <= case.train
    split = np.where(frame["subject"].map(first), "train", "test")
    frame = frame.assign(split=split)
    called = of_vit(frame, folder, shared) if case.train else of_fer2013(frame, folder, shared)
    tested = frame[frame["split"] == "test"].reset_index(drop=True)
    return {
        "case": case.name,
        "data": case.folder,
        "trained_on": int((frame["split"] == "train").sum()),
        "images": len(tested),
        "subjects": int(tested["subject"].nunique()),
        "rows": gaps_of(tested, called),
    }


@click.command()
@click.option(
    "--shared", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of data and weights."
)
@click.option("--json", "out", type=click.Path(path_type=Path), default=Path(__file__).with_name("results.json"))
def main(*, shared: Path, out: Path) -> None:
    """Measure all models, and write the figures; models that are in the file already are kept."""
    begun = time.monotonic()
    done = json.loads(out.read_text(encoding="utf-8"))["cases"] if out.is_file() else []
    for case in CASES:
        if case.name in {row["case"] for row in done}:
            continue
        done.append(measure(case, shared))
        found = {
            "cases": done,
            "date": time.strftime("%Y-%m-%d"),
            "code": commit_here(),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"vit-audit": __version__, "torch": torch.__version__},
            "seed": SEED,
            "resamples": RESAMPLES,
        }
        write_text(out, json.dumps(found, indent=1) + "\n")
        click.echo(f"{case.name}: {(time.monotonic() - begun) / 60:.1f} min", err=True)
    for case_row in done:
        for row in case_row["rows"]:
            line = f"{case_row['case']:24}{row['pipeline']:30}{100 * row['gap_tpr']:+6.1f}"
            if (change := row["change_tpr"]) is not None:
                line += "  {:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * change[k] for k in ("estimate", "low", "high")))
            click.echo(line)


if __name__ == "__main__":
    main()
