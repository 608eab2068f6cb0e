"""What each repair of a ViT-S costs, in seconds, beside the fine-tuning that made the model.

Weights are random and images are noise: seconds depend on neither, and no file is needed. What methods read of the
images is computed once, and timed apart from them.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import timm
import torch

from audit.card.schema import TrainingSpec
from audit.data.pixels import mirrored
from audit.models.adapters.registry import Model
from audit.models.finetune import Recipe, finetune, make_views
from audit.patching.sites import Site
from audit.records.repair_methods import AT_HEADS, Method
from audit.repair.base import Aim, RepairData, RepairInput, Split
from audit.repair.random_heads import matched_sets
from audit.repair.registry import repair, repair_at_random, why_not

SMALL, TABLE = (720, 240), (2700, 900)  # images to train on, and to fit on: of a table of 2,400, and of 9,000
LAST_LAYER = (Method.GLOBAL_THRESHOLD, Method.DFR, Method.OXONFAIR, Method.LEACE)
HEADS = (Site(8, 1), Site(10, 3))  # named ones: two of 72, in the last third, as audits mostly find them
GOAL_SHARE, GOAL_SECONDS = 0.1, 300.0
Figures = dict[str, Any]
Found = TypeVar("Found")
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Parameters
    ----------
    training, fit : int
        Images that the model is fine-tuned on, and that methods are fitted on. Of 30% and two thirds of 15% of a
        table, one is three times the other.
    name, overrides
        Of timm's model.
    side : int
        Of an image, in pixels.
    draws : int
        Sets of random heads, of which the seconds of one are told.
    """

    training: int = SMALL[0]
    fit: int = SMALL[1]
    name: str = "vit_small_patch16_224"
    overrides: tuple[tuple[str, int], ...] = ()
    side: int = 112
    draws: int = 2
    heads: tuple[Site, ...] = HEADS


def costs(sizes: Sizes | None = None, tell: Tell = lambda _step, _done, _total: None) -> Figures:
    """Fine-tune as a card does by default, then run every method that does not train the model on.

    Returns
    -------
    dict
        ``finetuning_seconds``; ``features_seconds``, of the one pass over the images; ``methods``, each with its
        ``seconds`` and their ``share`` of the fine-tuning; ``heads_share``, the largest of the edits at heads; and
        ``all_seconds``, of all these methods together, from features that are held.
    """
    sizes = sizes or Sizes()
    spec = TrainingSpec()
    recipe = Recipe(spec.epochs, spec.batch_size, spec.learning_rate, spec.weight_decay, spec.warmup_share, seed=0)
    training, model = _images(sizes.training, sizes.side, 1), _model(sizes)
    tell("fine-tuning", 0, 0)
    tuned, finetuning = _timed(lambda: _finetuned(model, training, recipe))
    given = RepairInput(
        tuned,
        RepairData(_images(sizes.fit, sizes.side, 2), training),
        Aim("group", group=1, reference=0, outcome=1),
        accuracy_margin=0.02,
        recipe=recipe,
        reference=_nudged(tuned),
        heads=sizes.heads,
    )
    tell("features", 0, 0)
    _, features = _timed(lambda: given.seen.logits)
    methods: Figures = {}
    for method in (*LAST_LAYER, *AT_HEADS):
        if why_not(method, given) is None:
            tell(method, 0, 0)
            seconds = repair(method, given).seconds
            methods[str(method)] = {"seconds": round(seconds, 2), "share": round(seconds / finetuning, 4)}
    tell(Method.RANDOM_HEADS, 0, 0)
    drawn = [m.seconds for m in repair_at_random(AT_HEADS[0], given, matched_sets(given, sizes.draws))]
    return {
        "model": sizes.name,
        "parameters": sum(weight.numel() for weight in tuned.parameters()),
        "image_side": sizes.side,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "training_images": sizes.training,
        "epochs": recipe.epochs,
        "fit_images": sizes.fit,
        "heads": [f"L{site.layer}H{site.head}" for site in sizes.heads],
        "finetuning_seconds": round(finetuning, 2),
        "features_seconds": round(features, 2),
        "methods": methods,
        "one_random_set_seconds": round(float(np.mean(drawn)), 2),
        "heads_share": max(methods[str(m)]["share"] for m in AT_HEADS),
        "all_seconds": round(sum(one["seconds"] for one in methods.values()), 1),
    }


def costs_told(found: Figures) -> list[str]:
    """Return the costs as lines of Markdown."""
    begun = (
        f"**Costs**, `{found['model']}` ({found['parameters'] / 1e6:.1f} million weights), {found['image_side']} px, "
        f"{found['threads']} threads of {found['cores']} cores: fine-tuning on {found['training_images']:,} images for "
        f"{found['epochs']} epochs took {found['finetuning_seconds']:,.0f} s, what methods read of "
        f"{found['fit_images']:,} images {found['features_seconds']:,.0f} s, all methods below "
        f"{found['all_seconds']:,.0f} s from then on (goal: {GOAL_SECONDS:,.0f} s)."
    )
    rows = [
        f"| `{name}` | {one['seconds']:,.1f} | {100 * one['share']:.1f}% |" for name, one in found["methods"].items()
    ]
    ended = (
        f"One set of random heads took {found['one_random_set_seconds']:,.1f} s. The dearest edit at heads "
        f"({', '.join(found['heads'])}) took {100 * found['heads_share']:.1f}% of the fine-tuning; the goal is under "
        f"{100 * GOAL_SHARE:.0f}%."
    )
    return [begun, "", "| method | seconds | of the fine-tuning |", "|---|---|---|", *rows, "", ended, ""]


def _timed(do: Callable[[], Found]) -> tuple[Found, float]:
    begun = time.monotonic()
    found = do()
    return found, time.monotonic() - begun


def _model(sizes: Sizes) -> Model:
    torch.manual_seed(0)
    made: Model = timm.create_model(sizes.name, img_size=sizes.side, num_classes=2, **dict(sizes.overrides))
    return made.eval()


def _finetuned(model: Model, training: Split, recipe: Recipe) -> Model:
    views = make_views(model, [training.images, mirrored(training.images)], recipe.train_blocks)
    finetune(model, views, training.targets, recipe)
    model.requires_grad_(False)
    return model.eval()


def _nudged(model: Model) -> Model:
    """Return a model near another, in the place of a balanced reference."""
    other, noise = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.01 * weight.abs().mean() * torch.randn(weight.shape, generator=noise))
    return other


def _images(n: int, side: int, seed: int) -> Split:
    """Draw noise of two labels and two groups, in all combinations equally often, each its own subject."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    number = np.arange(n, dtype=np.int64)
    return Split(pixels, number % 2, number // 2 % 2, number)
