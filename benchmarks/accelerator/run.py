"""Training, controls and sweep on a device, beside what one would write without this tool.

    python benchmarks/accelerator/run.py --device cuda --json benchmarks/accelerator/results.json

Training is raced against a plain loop of timm's parts (its AdamW, the same batches, autocast where asked); the patches
of the controls (heads of one model into another) and of the sweep (heads of other images) against plain hooks, one
forward pass a patch and batch. In turns; medians of the rounds, and their ratio. Losses and logits of both sides are
compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from audit.controls.measure import ControlDonor, measure_heads  # noqa: E402
from audit.models.adapters.registry import Model  # noqa: E402
from audit.models.device import DEVICES, PRECISIONS, computing_in, device_name, open_device, resolve_device  # noqa: E402
from audit.models.finetune import CLIP_NORM, Recipe, finetune, make_views  # noqa: E402
from audit.models.readout import class_log_odds  # noqa: E402
from audit.models.transforms import as_input  # noqa: E402
from audit.patching.hooks import donor_head_outputs, patch_with_hooks  # noqa: E402
from audit.patching.sites import sites_of  # noqa: E402
from audit.patching.sweep import DonorKind, sweep  # noqa: E402

SEED = 41
BATCH = 32
CLASSES = 7
Rows = npt.NDArray[np.int64]
Work = Callable[[], npt.NDArray[np.float64]]


def model_of(name: str, device: torch.device, seed: int) -> Model:
    """Return a model of random weights, as two fine-tunings of one base would be: alike but for small changes."""
    torch.manual_seed(SEED)
    model = timm.create_model(name, num_classes=CLASSES)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.to(device).eval().requires_grad_(False)


def race(here: Work, plain: Work, rounds: int, device: torch.device) -> dict[str, float]:
    """Run both in turns, after a round that warms up; return medians, their ratio and the largest difference."""
    taken: dict[str, list[float]] = {"here": [], "plain": []}
    apart = 0.0
    for number in range(rounds + 1):
        found = {}
        for name, work in (("here", here), ("plain", plain)):
            _wait(device)
            begun = time.perf_counter()
            found[name] = work()
            _wait(device)
            taken[name] += [time.perf_counter() - begun] if number else []
        apart = max(apart, float(np.abs(found["here"] - found["plain"]).max()))
    seconds, of_plain = (statistics.median(taken[name]) for name in ("here", "plain"))
    return {
        "seconds": round(seconds, 3),
        "plain_seconds": round(of_plain, 3),
        "ratio": round(of_plain / seconds, 2),
        "largest_difference": apart,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def training(name: str, pixels: npt.NDArray[np.uint8], device: torch.device, precision: str, rounds: int) -> Any:
    """Race one epoch over all parameters."""
    targets: Rows = np.arange(len(pixels), dtype=np.int64) % CLASSES
    recipe = Recipe(epochs=1, batch_size=BATCH, learning_rate=1e-5, weight_decay=0.05, warmup_share=0.0, seed=0)
    dtype = PRECISIONS[precision]

    def here() -> npt.NDArray[np.float64]:
        model = model_of(name, device, 1)
        return np.array(finetune(model, make_views(model, [pixels], None), targets, recipe, precision=dtype))

    def plain() -> npt.NDArray[np.float64]:
        model = model_of(name, device, 1).train().requires_grad_(True)
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-5, weight_decay=0.05, fused=True)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        order, total = np.random.default_rng(0).permutation(len(pixels)), 0.0
        for start in range(0, len(pixels), BATCH):
            rows = order[start : start + BATCH]
            with computing_in(dtype, device):
                logits = model(as_input(model, pixels[rows]))
            loss = F.cross_entropy(logits.float(), torch.from_numpy(targets[rows]).to(device))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            scaler.step(optimizer)
            scaler.update()
            total += float(loss.detach()) * len(rows)
        return np.array([total / len(pixels)])

    return race(here, plain, rounds, device)


def controls(name: str, pixels: npt.NDArray[np.uint8], device: torch.device, layers: range, rounds: int) -> Any:
    """Race the patches of every head of some layers of one model into another."""
    recipient, donor = model_of(name, device, 1), model_of(name, device, 2)
    targets: Rows = np.arange(len(pixels), dtype=np.int64) % CLASSES

    def here() -> npt.NDArray[np.float64]:
        found = measure_heads(recipient, pixels, {"donor": ControlDonor(donor, pixels)}, targets, layers)
        return found["donor"].reshape(len(pixels), -1)

    def plain() -> npt.NDArray[np.float64]:
        base, patched = _by_hooks(recipient, donor, pixels, pixels, layers)
        true = torch.from_numpy(targets)
        odds = [class_log_odds(t.cpu().double()) for t in (base, *patched)]
        picked = [o.gather(1, true[:, None])[:, 0].numpy() for o in odds]
        return np.stack([p - picked[0] for p in picked[1:]], axis=1)

    return race(here, plain, rounds, device)


def sweeping(name: str, pixels: npt.NDArray[np.uint8], device: torch.device, layers: range, rounds: int) -> Any:
    """Race the patches of every head of some layers from other images."""
    model, half = model_of(name, device, 1), len(pixels) // 2
    rows: Rows = np.arange(half, dtype=np.int64)

    def here() -> npt.NDArray[np.float64]:
        table = sweep(model, pixels, rows, [DonorKind("cross", model, rows + half)], layers=layers, outcomes={"0": 0})
        wide = table.pivot_table(index="position", columns=["layer", "head"], values="p:0")
        return wide.to_numpy(dtype=np.float64)

    def plain() -> npt.NDArray[np.float64]:
        _, patched = _by_hooks(model, model, pixels[:half], pixels[half:], layers)
        return np.stack([t.cpu().double().softmax(1)[:, 0].numpy() for t in patched], axis=1)

    return race(here, plain, rounds, device)


@torch.inference_mode()
def _by_hooks(
    model: Model,
    donor: Model,
    pixels: npt.NDArray[np.uint8],
    given: npt.NDArray[np.uint8],
    layers: range,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    sites, base, patched = sites_of(model, layers), [], []
    for start in range(0, len(pixels), BATCH):
        images, donors = as_input(model, pixels[start : start + BATCH]), as_input(donor, given[start : start + BATCH])
        outputs = donor_head_outputs(donor, donors, sites)
        base.append(model(images))
        patched.append([patch_with_hooks(model, images, {site: outputs[site]}) for site in sites])
    return torch.cat(base), [torch.cat(of_site) for of_site in zip(*patched, strict=True)]


@click.command()
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--model", "name", default="vit_tiny_patch16_224", show_default=True)
@click.option("--images", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--precision", type=click.Choice(list(PRECISIONS)), default="float32", show_default=True, help="Of training."
)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Add the result to this file, by device.")
def main(device: str, name: str, images: int, rounds: int, precision: str, target: Path | None) -> None:
    """Race training, controls and sweep on a device."""
    there = open_device(resolve_device(device))
    pixels = np.random.default_rng(SEED).integers(0, 256, (images, 224, 224, 3), dtype=np.uint8)
    depth = len(model_of(name, torch.device("cpu"), 1).blocks)
    layers = range(depth - 3, depth)
    result = {
        "training": training(name, pixels, there, precision, rounds),
        "controls": controls(name, pixels, there, layers, rounds),
        "sweep": sweeping(name, pixels, there, layers, rounds),
        "made_with": {
            "device": device_name(there),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "model": name,
            "images": images,
            "layers": [layers.start, layers.stop],
            "precision": precision,
            "rounds": rounds,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "seed": SEED,
            "load_average": round(os.getloadavg()[0], 1),
        },
    }
    click.echo(json.dumps(result, indent=1))
    if target is not None:
        known = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        known[f"{there.type} {precision}"] = result
        target.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
