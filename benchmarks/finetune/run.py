"""Measure what share of fine-tuning is spent waiting for data, at the demo's size and for a ViT-S on photographs.

    python benchmarks/finetune/run.py --json out.json

Images are decoded and resized once; the frozen blocks' features are computed once; every step then takes its rows and
turns them into float32. The first and the last are waiting for data, the second is arithmetic.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from audit import __version__  # noqa: E402
from audit.card.load import load_card  # noqa: E402
from audit.card.schema import Card, ModelSpec  # noqa: E402
from audit.data.pixels import Pixels, centred_square, load_pixels, mirrored  # noqa: E402
from audit.data.synthetic import SyntheticSource, sample_faces  # noqa: E402
from audit.models import finetune as training  # noqa: E402
from audit.models.build import Backbone  # noqa: E402
from audit.models.finetune import Recipe, make_views  # noqa: E402

PHOTOGRAPH = (640, 480)
VIT_S = ModelSpec(name="vit_small_patch14_dinov2", weights="none", image_size=98, train_blocks=4)
Open = Callable[[str], Image.Image]


@dataclass(frozen=True)
class Source:
    """Opens images by a function."""

    open: Open


@dataclass(frozen=True)
class Job:
    """A fine-tuning: model, images and where they come from."""

    name: str
    spec: ModelSpec
    keys: list[str]
    source: Source | SyntheticSource


class Clock:
    """Adds up wall seconds under a name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a clock around it."""

        def wrapped(*args: Any, **named: Any) -> Any:
            with self.of(name):
                return function(*args, **named)

        return wrapped


def jobs(images: int) -> list[Job]:
    """Return the demo's fine-tuning, and that of a ViT-S at 98 px on JPEG photographs."""
    card: Card = load_card(ROOT / "datasets" / "synthetic-expressions.yaml")
    faces = sample_faces(images, 0, split="train")
    demo = card.model.model_copy(update={"weights": "none"})
    files = [_jpeg(seed) for seed in range(16)]
    photographs = Source(lambda key: Image.open(io.BytesIO(files[int(key) % len(files)])).convert("RGB"))
    return [
        Job("demo, 64 px", demo, faces["image"].tolist(), SyntheticSource(faces)),
        Job("ViT-S, 98 px", VIT_S, [str(i) for i in range(images)], photographs),
    ]


def _jpeg(seed: int) -> bytes:
    """Return a JPEG file of smooth noise, of a photograph's size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure(job: Job, epochs: int) -> dict[str, float]:
    """Fine-tune once and return seconds and the share of waiting."""
    clock = Clock()
    model = Backbone(job.spec, None).build(2)
    size = int(model.patch_embed.img_size[0])
    with clock.of("decode"):
        pixels: Pixels = load_pixels(job.source, job.keys, centred_square(size))
    with clock.of("features"):
        views = make_views(model, [pixels, mirrored(pixels)], job.spec.train_blocks)
    targets = np.random.default_rng(0).integers(0, 2, len(pixels))
    recipe = Recipe(
        epochs=epochs, batch_size=32, learning_rate=1e-4, weight_decay=0.05, warmup_share=0.1, seed=0,
        train_blocks=job.spec.train_blocks,
    )  # fmt: skip
    draw = training._drawn
    training._drawn = clock.timed("index and convert", draw)
    try:
        with clock.of("steps, all"):
            training.finetune(model, views, targets, recipe)
    finally:
        training._drawn = draw
    return _shares(clock.seconds, len(pixels), epochs)


def _shares(seconds: dict[str, float], images: int, epochs: int) -> dict[str, float]:
    once, drawn, steps = seconds["decode"], seconds["index and convert"], seconds["steps, all"]
    whole = once + seconds["features"] + steps
    return {
        "images": images,
        "epochs": epochs,
        "decode_seconds": once,
        "decode_ms_an_image": 1000 * once / images,
        "features_seconds": seconds["features"],
        "steps_seconds": steps,
        "index_and_convert_seconds": drawn,
        "waiting_share_of_steps": drawn / steps,
        "waiting_share_of_all": (once + drawn) / whole,
    }


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option("--images", default=1200, show_default=True)
@click.option("--epochs", default=3, show_default=True)
def main(*, out: Path | None, images: int, epochs: int) -> None:
    """Print what share of fine-tuning is spent waiting for data, as JSON."""
    results: dict[str, Any] = {job.name: measure(job, epochs) for job in jobs(images)}
    results["made_with"] = {
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"vit-audit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    text = json.dumps(results, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
