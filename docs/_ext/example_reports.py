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

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import vit_audit as va
from audit.report.page import Page

FOLDER = "example-reports"
ROOT = Path(__file__).parents[2]
CLASSES = ["neutral", "smiling"]
GROUPS = {"skin_tone": {"column": "skin_tone", "reference": "lighter"}}
CONTROLS = {"train_images": 400, "eval_images": 96, "base_epochs": 12, "condition_epochs": 6, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Shown:
    """A report that was made: its outcome in words, and a picture out of it."""

    outcome: str
    alt: str


def model(folder: Path, association: float, epochs: int = 12) -> Any:
    """Return a small transformer, trained to tell smiling faces where smiles go with lighter skin so strongly."""
    import timm
    import torch
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    faces = va.rendered_faces(folder, 600, association=association, seed=1)
    images = torch.stack([pil_to_tensor(Image.open(folder / path)) for path in faces["path"]]) / 127.5 - 1
    truth = torch.tensor((faces["expression"] == "smiling").to_numpy(int))
    torch.manual_seed(0)
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=16, depth=2, embed_dim=64, num_heads=4, num_classes=2
    )
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-3)
    for order in [torch.randperm(len(truth)) for _ in range(epochs)]:
        for batch in order.split(32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(made(images[batch]), truth[batch]).backward()
            optimiser.step()
    return made


def audited(folder: Path, net: Any, name: str, images: int, **audit: Any) -> va.Result:
    """Audit a model on faces in which smiles go with no tone."""
    faces = va.rendered_faces(folder / "faces", images, seed=2)
    data = va.Data.from_frame(faces, images="path", label="expression", groups=GROUPS, root=folder / "faces")
    settings = {"name": name, "task": "emotion", "audit": {"outcomes": ["smiling"]}} | audit
    return va.audit(va.plan(settings, net, data), out=folder / "run", report=False)


def alike(folder: Path) -> va.Result:
    """Audit a model in which nothing was planted on faces enough to exclude a gap above the policy."""
    net = va.wrap(model(folder / "train", 0.0), classes=CLASSES)
    policy = {"gap_above": 0.15}
    return audited(folder, net, "Drawn faces, nothing planted", 1600, policy=policy, controls=CONTROLS)


def few(folder: Path) -> va.Result:
    """Audit the same model on so few faces that a gap above the policy could have been missed."""
    net = va.wrap(model(folder / "train", 0.0), classes=CLASSES)
    return audited(folder, net, "Drawn faces, too few of them", 200, controls=CONTROLS)


def hurried(folder: Path) -> va.Result:
    """Audit a model with controls that were trained too little to show what they must."""
    net = va.wrap(model(folder / "train", 0.8), classes=CLASSES)
    controls = CONTROLS | {"train_images": 64, "base_epochs": 1, "condition_epochs": 1}
    return audited(folder, net, "Drawn faces, controls trained too little", 400, controls=controls)


def answers(folder: Path) -> va.Result:
    """Audit no more than the answers of a model that learnt that lighter faces smile."""
    import torch
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    made = model(folder / "train", 0.8).eval()
    faces = va.rendered_faces(folder / "faces", 800, seed=2)
    images = torch.stack([pil_to_tensor(Image.open(folder / "faces" / p)) for p in faces["path"]]) / 127.5 - 1
    with torch.inference_mode():
        given = made(images).softmax(1).double().numpy()
    table = faces[["path"]].assign(**dict(zip(CLASSES, given.T, strict=True)))
    net = va.predictions(table, classes=CLASSES, image="path")
    return audited(folder, net, "Drawn faces, answers alone", 800)


EXAMPLES: dict[str, Callable[[Path], va.Result]] = {
    "demonstration": lambda _folder: va.open_run(ROOT / "reports" / "sample"),
    "alike": alike,
    "few": few,
    "hurried": hurried,
    "answers": answers,
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
