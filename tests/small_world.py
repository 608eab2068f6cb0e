"""A whole audit in small: 400 rendered faces, a transformer of two blocks, everything through the command line."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from audit.cli import main
from audit.data.synthetic import Face, render
from audit.models.rendered_base import RECIPE, rendered_base
from audit.report.render import printed

Invoke = Callable[..., Result]
SMALL_CARD: dict[str, Any] = {
    "name": "Small rendered audit",
    "task": "emotion",
    "data": {
        "reader": "synthetic",
        "rendered": {"train_images": 400, "audit_images": 240, "association": 0.9},
        "consent": "no people",
    },
    "groups": {"skin_tone": {"column": "skin_tone", "reference": "lighter", "provenance": "drawn"}},
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "rendered",
        "image_size": 64,
        "overrides": {"patch_size": 16, "depth": 2, "embed_dim": 64, "num_heads": 4},
    },
    "training": {"seeds": [0], "epochs": 4, "learning_rate": 1e-3},
    "controls": {
        "card": "rendered",
        "train_images": 400,
        "eval_images": 96,
        "base_epochs": 12,
        "condition_epochs": 6,
        "learning_rate": 1e-3,
    },
    "audit": {"outcomes": ["smiling"], "permutations": 200, "bootstrap": 200},
}


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Run:
    """A finished audit: its card, folder, record, and what the command said."""

    card: Path
    out: Path
    folder: Path
    result: Said | Result

    @property
    def record(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "audit.json").read_text(encoding="utf-8"))
        return loaded


def write_card(path: Path, **changes: Any) -> Path:
    """Write the small card; each change replaces a part, or updates it where both are mappings."""
    card = deepcopy(SMALL_CARD)
    for key, value in changes.items():
        together = isinstance(value, dict) and isinstance(card.get(key), dict) and key != "data"
        card[key] = {**card[key], **value} if together else value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return path


def invoke(*args: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


@contextmanager
def without_pdf() -> Iterator[None]:
    """Leave the PDF out of what is printed, which takes most of the time, where nothing is asked of it."""

    def others(source: Any, **named: Any) -> dict[str, bytes]:
        return printed(source, **{**named, "pdf": False})

    with pytest.MonkeyPatch.context() as patch:
        for module in ("report.render", "report.shareable", "report.reviewing", "pipeline.print_again"):
            patch.setattr(f"audit.{module}.printed", others)
        yield


@cache
def drawn_once(face: Face) -> Image.Image:
    """Draw a face, of which the audits of a session have many in common."""
    return render(face)


SMALL_BASE = partial(rendered_base, faces=400, recipe=replace(RECIPE, epochs=4))


@dataclass(frozen=True)
class World:
    """A folder that all processes of a test session share: trained models, and audits that many tests look at."""

    shared: Path

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Keep trained models in the shared cache, train the rendered base on few faces, wait for no disk."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VIT_AUDIT_CACHE", str(self.shared / "cache"))
            patch.delenv("VIT_AUDIT_DATA", raising=False)
            patch.setattr("audit.pipeline.prepare.rendered_base", SMALL_BASE)
            patch.setattr(os, "fsync", lambda _descriptor: None)
            patch.setattr("audit.data.synthetic.source.render", lambda face: drawn_once(face).copy())
            yield

    def audited(self, name: str, prepare: Callable[[Path], Path], own: Path) -> Run:
        """Run an audit once in a session; return a copy of its run directory below ``own``.

        ``prepare`` fills a folder and returns the card in it.
        """
        place = self.shared / name
        place.mkdir(exist_ok=True)
        with (self.shared / f"{name}.lock").open("w") as lock, self.entered():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "said.json").is_file():
                card = prepare(place)
                result = invoke("run", card, "--out", place / "out")
                assert result.exit_code in (0, 1, 4), result.output
                said = {"card": str(card), "said": [result.exit_code, result.stdout, result.stderr]}
                (place / "said.json").write_text(json.dumps(said), encoding="utf-8")
        told = json.loads(
            (place / "said.json").read_text(encoding="utf-8").replace(str(place / "out"), str(own / "out"))
        )
        shutil.copytree(place / "out", own / "out")
        (folder,) = (own / "out").iterdir()
        return Run(Path(told["card"]), own / "out", folder, Said(*told["said"]))
