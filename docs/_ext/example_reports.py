"""Runs small audits that end in each outcome, and puts their reports beside the pages, where a directive shows them.

```{example-report} alike
```
"""

from __future__ import annotations

import base64
import html
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from docutils import nodes
from docutils.parsers.rst import Directive
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sphinx.application import Sphinx

import vit_audit as va
from audit.report.page import Page

FOLDER = "example-reports"
ROOT = Path(__file__).parents[2]
CLASSES = ["neutral", "smiling"]


@dataclass(frozen=True)
class Shown:
    """A report that was made: its outcome in words, and a picture out of it."""

    outcome: str
    alt: str


def answers(folder: Path, association: float, images: int) -> tuple[pd.DataFrame, va.Predictions]:
    """Return drawn faces, and what a regression makes of them that learnt where smiles go with lighter skin so far."""

    def pixels(place: Path, table: pd.DataFrame) -> Any:
        seen = [Image.open(place / path).convert("L").resize((24, 24)) for path in table["path"]]
        return np.stack([np.asarray(image, float).ravel() for image in seen])

    train = va.rendered_faces(folder / "train", 1500, association=association, seed=1)
    faces = va.rendered_faces(folder / "faces", images, seed=2)
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    regression.fit(pixels(folder / "train", train), train["expression"])
    given = faces[["path"]].copy()
    given[CLASSES] = regression.predict_proba(pixels(folder / "faces", faces))
    return faces, va.predictions(given, classes=CLASSES, image="path")


def audited(folder: Path, faces: pd.DataFrame, net: va.Net | va.Predictions, name: str, **settings: Any) -> va.Result:
    """Audit what a model makes of faces, in which smiles go with no tone."""
    groups = {
        "skin_tone": {
            "column": "skin_tone",
            "reference": "lighter",
            "display": {"lighter": "lighter faces", "darker": "darker faces"},
        }
    }
    data = va.Data.from_frame(faces, images="path", label="expression", groups=groups, root=folder / "faces")
    told = {"name": name, "task": "emotion", "intended_use": "Showing what a report looks like."}
    card = told | {"audit": {"outcomes": ["smiling"]}} | settings
    return va.audit(va.plan(card, net, data), out=folder / "run", report=False)


def planted(folder: Path) -> va.Result:
    """Audit the answers of a model that learnt that lighter faces smile."""
    return audited(folder, *answers(folder, 0.8, 1200), "Drawn faces, answers alone, an association planted")


def alike(folder: Path) -> va.Result:
    """Audit a model in which nothing was planted, on faces enough to exclude a gap above the policy."""
    return audited(folder, *answers(folder, 0.0, 2400), "Drawn faces, nothing planted")


def few(folder: Path) -> va.Result:
    """Audit the same model on so few faces that a gap above the policy could have been missed."""
    return audited(folder, *answers(folder, 0.0, 160), "Drawn faces, too few of them")


def hurried(folder: Path) -> va.Result:
    """Audit a transformer with controls that were trained too little to show what they must."""
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=16, depth=2, embed_dim=64, num_heads=4, num_classes=2
    )
    controls = {"train_images": 64, "eval_images": 96, "base_epochs": 1, "condition_epochs": 1, "learning_rate": 1e-3}
    faces = va.rendered_faces(folder / "faces", 400, seed=2)
    net = va.wrap(module, classes=CLASSES)
    return audited(folder, faces, net, "Drawn faces, controls trained too little", controls=controls)


EXAMPLES: dict[str, Callable[[Path], va.Result]] = {
    "demonstration": lambda _folder: va.open_run(ROOT / "reports" / "sample"),
    "alike": alike,
    "few": few,
    "hurried": hurried,
    "planted": planted,
}


@cache
def made(name: str, folder: Path) -> Shown:
    """Run an example, and write its report and a picture of it to a folder."""
    target = folder / FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        result = EXAMPLES[name](Path(work))
        result.report(target / "report.html")
    page = Page(result.record, "")
    questions = page.core.questions()
    picture = page.errors_picture(*questions[0]) if questions and not page.is_invalid else page.controls_picture()
    if picture is None:
        raise RuntimeError(f"the report of '{name}' has no picture")
    (target / "picture.svg").write_bytes(base64.b64decode(picture.light.partition(",")[2]))
    return Shown(f"{result.outcome}, exit code {int(result.exit_code)}", picture.alt)


class ExampleReport(Directive):
    """Shows an example by its name: a picture out of its report, which leads to the report, with its outcome."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return picture and link."""
        (name,) = self.arguments
        settings = self.state.document.settings.env
        shown = made(name, Path(settings.app.srcdir) / "docs" / "generated")
        place = f"{FOLDER}/{name}"
        text = (
            f'<p><a href="{place}/report.html"><img src="{place}/picture.svg" alt="{html.escape(shown.alt)}"></a></p>'
            f'<p><strong>{shown.outcome}</strong>: <a href="{place}/report.html">the whole report</a></p>'
        )
        return [nodes.raw("", text, format="html")]


def copy_reports(app: Sphinx, error: Exception | None) -> None:
    """Put reports and pictures beside the page that shows them."""
    source = Path(app.srcdir) / "docs" / "generated" / FOLDER
    if error is None and source.is_dir():
        shutil.copytree(source, Path(app.outdir) / "docs" / FOLDER, dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive, and copy what it made at the end of a build."""
    app.add_directive("example-report", ExampleReport)
    app.connect("build-finished", copy_reports)
    return {"parallel_read_safe": False}
