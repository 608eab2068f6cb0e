"""What do the controls of a ViT-S cost, and where does it go?

    OMP_NUM_THREADS=1 python benchmarks/control_cost/run.py --json benchmarks/control_cost/results.json

Work is counted, not timed: a narrow model with the layers and heads of a ViT-S goes through the same measurements on
small images, and torch counts its operations. They are told in passes of one image through one block. What such a pass
takes is then timed on a block of a ViT-S at 98 px, and the two are multiplied. ``--before FILE`` puts the counts of
another commit, made by this script there, beside them.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from audit.controls.control_images import rendered_set  # noqa: E402
from audit.controls.control_models import corrupt  # noqa: E402
from audit.controls.identities import Subject, run_identities  # noqa: E402
from audit.controls.initialisation import Pair, Task, run_initialisation  # noqa: E402
from audit.controls.spec import Channel, ChannelSpec  # noqa: E402
from audit.controls.trials import measure_channels  # noqa: E402
from audit.models.adapters.registry import Model  # noqa: E402
from audit.models.predict import predict_logits  # noqa: E402

NAME, DEPTH, HEADS, CLASSES = "vit_small_patch14_dinov2", 12, 6, 4
NARROW, SMALL = 48, 42  # width and side of the images where work is counted
WIDE, SIDE = 384, 98  # where it is timed
IMAGES, OWN_IMAGES = 300, 4  # by default, of the control images and of the audit's own
TRAINED = {"all blocks trained, 72 heads": 12, "six blocks trained, 36 heads": 6}
SEED, DONORS, ROUNDS = 0, 2, 5
CORES = 2


def tokens_of(side: int, images: int, width: int) -> torch.Tensor:
    """Return what enters a block."""
    return torch.randn(images, (side // 14) ** 2 + 1, width)


def vit(width: int, seed: int, start: int = 0) -> Model:
    """Return a model; those of any seeds are one up to block ``start``."""
    torch.manual_seed(SEED)
    model = timm.create_model(NAME, img_size=SMALL, embed_dim=width, num_heads=HEADS, num_classes=CLASSES).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        trained = name.startswith(tuple(f"blocks.{i}." for i in range(start, DEPTH)))
        if seed and trained and weight.ndim > 1:
            weight.data = torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
    return model.requires_grad_(False)


def channel_of(start: int) -> Channel:
    """Return a channel whose clean models agree on what is right, and whose others do not know it."""
    images = rendered_set(1, IMAGES, SMALL, SEED)
    clean, corrupted, *null = (vit(NARROW, seed, start) for seed in range(1, 3 + DONORS))
    logits = torch.from_numpy(predict_logits(clean, images.evaluate))
    for model in (clean, corrupted, *null):  # one classifier, whose classes are about equally frequent
        model.head.weight /= logits.std(0)[:, None]
        model.head.bias.copy_(-logits.mean(0) / logits.std(0))
    targets = predict_logits(clean, images.evaluate).argmax(1).astype(np.int64)
    return Channel(
        spec=ChannelSpec("colour", "colour", "gray", range(start, DEPTH), DONORS),
        clean=(clean, *(copy.deepcopy(clean) for _ in range(DONORS - 1))),
        corrupted=corrupted,
        null=tuple(null),
        untrained=vit(NARROW, 9),
        pixels=images.evaluate,
        targets=targets,
    )


def gates(channel: Channel) -> None:
    """Run the same-initialisation gates of a channel, as an audit does."""
    layers, clean = channel.spec.layers, Task(channel.pixels, channel.targets)
    corrupted = Task(corrupt(channel.pixels, channel.spec.corruption), channel.targets)
    for recipient, donors, task, words in (
        (channel.corrupted, channel.clean, clean, "models"),
        (channel.corrupted, channel.null, corrupted, "null models"),
        (channel.clean[0], (*channel.clean[1:], *channel.null[1:]), clean, "donors"),
    ):
        pairs = [Pair(recipient, donor, "a", "a") for donor in donors]
        run_initialisation(pairs, task, words, layers=layers, channel=channel.spec.name)


def identities() -> None:
    """Run the identities, as an audit does."""
    model, images = vit(NARROW, 1), torch.randn(2 * OWN_IMAGES, 3, SMALL, SMALL)
    run_identities(Subject(model, images[:OWN_IMAGES], images[OWN_IMAGES:]))


def operations(work: Callable[[], object]) -> float:
    """Count the floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def block_passes(trained: int) -> dict[str, int]:
    """Count, for both channels together, what each measurement takes in passes of an image through a block."""
    block, tokens = vit(NARROW, 1).blocks[0], tokens_of(SMALL, 1, NARROW)
    with torch.inference_mode():
        unit = operations(lambda: block(tokens))
    channel = channel_of(DEPTH - trained)
    counted = {
        "effects and nulls, single heads included": 2 * operations(lambda: measure_channels([channel], seed=SEED)),
        "same-initialisation gates": 2 * operations(lambda: gates(channel)),
        "identities": operations(identities),
    }
    return {name: round(total / unit) for name, total in counted.items()}


def seconds_a_pass() -> list[float]:
    """Time the pass of an image through a block of a ViT-S, in processor seconds of one thread, round by round."""
    torch.set_num_threads(1)
    block, tokens = vit(WIDE, 1).blocks[0], tokens_of(SIDE, 32, WIDE)
    found = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            begun = time.process_time()
            for _ in range(5):
                block(tokens)
            found.append((time.process_time() - begun) / (5 * len(tokens)))
    return found[1:]


def minutes(passes: int, seconds: float) -> float:
    """Return the minutes of so many passes on so many cores, all of them busy."""
    return round(passes * seconds / CORES / 60, 2)


def measure(before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is printed."""
    counted = {name: block_passes(trained) for name, trained in TRAINED.items()}
    rounds = seconds_a_pass()
    seconds = sorted(rounds)[len(rounds) // 2]
    stages = {name: sum(parts.values()) for name, parts in counted.items()}
    found: dict[str, Any] = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(v, 1) for v in os.getloadavg()],
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "seed": SEED,
        "images": IMAGES,
        "milliseconds_a_pass": [round(1000 * v, 3) for v in rounds],
        "block_passes": counted,
        "minutes_on_2_cores": {name: minutes(total, seconds) for name, total in stages.items()},
    }
    if before is not None:
        then = {name: sum(parts.values()) for name, parts in before["block_passes"].items()}
        found["before"] = {
            "block_passes": before["block_passes"],
            "minutes_on_2_cores": {name: minutes(total, seconds) for name, total in then.items()},
        }
        found["ratio"] = {name: round(then[name] / total, 2) for name, total in stages.items()}
    return found


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path), help="Where to write the figures.")
@click.option("--before", type=click.Path(exists=True, path_type=Path), help="Figures of another commit.")
def main(out: Path | None, before: Path | None) -> None:
    """Count the work of the controls, time a unit of it, and multiply."""
    found = measure(None if before is None else json.loads(before.read_text(encoding="utf-8")))
    text = json.dumps(found, indent=1) + "\n"
    click.echo(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
