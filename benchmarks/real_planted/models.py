"""Models whose gap is planted in some parts of a pretrained ViT, and what all of them are made from.

A base and a reference are fine-tuned from the pretrained blocks, each on photographs drawn evenly from group and label.
In the base, the values and outputs of a head (or two, or an MLP) are trained further on a sample whose label goes with
the group: what is learnt there is the cue. Then all weights behind the frozen blocks are trained a little on an even
sample, so that every part differs from the base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from audit.models.finetune import Recipe, Views, finetune
from audit.models.predict import finish
from audit.patching.parts import Kind, Part, parse_part
from benchmarks.real_planted.photographs import ATTRIBUTE, CONTRAST, OUTCOME, World

What = Literal["one head", "two heads", "one MLP", "permuted groups"]
PLANTED: tuple[What, ...] = ("one head", "two heads", "one MLP")
DOSES = (1.0, 2.0, 4.0, 6.0)  # log odds ratio of label and group in the sample on which a part is trained further
HIGH = DOSES[2:]
BATCH = 32
BASE_RATE = 1e-4  # learning rates
HEAD_RATE = 2e-3
MLP_RATE = 5e-4
EVEN_RATE = 2e-5
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Steps:
    """Of ``BATCH`` photographs each."""

    base: int
    planted: int
    even: int


@dataclass(frozen=True)
class Plan:
    """One model of the benchmark, and with "permuted groups" what is done with it."""

    kind: What
    number: int
    dose: float
    parts: tuple[str, ...]  # such as "L1H3" or "L2 MLP", counted from the first block that is trained
    seed: int

    @property
    def name(self) -> str:
        """For files: "one-head-4.0-03"."""
        return f"{self.kind.replace(' ', '-')}-{self.dose}-{self.number:02d}"


def plans(*, passes: int, seed: int, layers: int, heads: int) -> list[Plan]:
    """Return what to make: one of every kind, then the next.

    One head at each dose; two heads and an MLP at the two high doses each; and two audits with permuted groups, of the
    base and of a model with a planted head. Heads differ from model to model until all have had their turn.
    """
    rng = np.random.default_rng(seed)
    by_layer = [[Part(Kind.HEAD, layer, int(h)) for h in rng.permutation(heads)] for layer in rng.permutation(layers)]
    every = [str(parts[k]) for k in range(heads) for parts in by_layer]
    mlps = [str(Part(Kind.MLP, int(layer))) for layer in rng.permutation(layers)]
    made: list[Plan] = []

    def add(kind: What, number: int, dose: float, parts: Sequence[str]) -> None:
        made.append(Plan(kind, number, dose, tuple(sorted(parts)), seed * 100_000 + len(made)))

    for number in range(passes):
        turn = len(DOSES) * number
        for k, dose in enumerate(DOSES):
            add("one head", number, dose, [every[(turn + k) % len(every)]])
        add("permuted groups", number, 0.0, [])
        for k, dose in enumerate(HIGH):
            at = (turn + 2 * k + 1) % len(every)
            add("two heads", number, dose, [every[at], every[(at + 1) % len(every)]])
            add("one MLP", number, dose, [mlps[(2 * number + k) % len(mlps)]])
        add("permuted groups", number, HIGH[-1], [every[(turn + 3) % len(every)]])
    return made


def draw_rows(world: World, dose: float, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw photographs to train on: groups evenly, and the outcome with log odds of plus or minus half the dose."""
    train = world.frame[world.frame["split"] == "train"]
    is_group = rng.random(size) < 0.5
    is_outcome = rng.random(size) < expit(np.where(is_group, dose, -dose) / 2)
    rows = np.empty(size, dtype=np.int64)
    for side in (False, True):
        for label in (False, True):
            cell = ((train[ATTRIBUTE] == CONTRAST.group) == side) & ((train["label"] == OUTCOME) == label)
            asked = (is_group == side) & (is_outcome == label)
            rows[asked] = rng.choice(train.index[cell].to_numpy(), int(asked.sum()))
    return rows


def targets_of(world: World) -> npt.NDArray[np.int64]:
    """Return the class number of each photograph's label."""
    return (world.frame["label"] == OUTCOME).to_numpy().astype(np.int64)


def train_evenly(model: VisionTransformer, world: World, *, steps: int, rate: float, seed: int) -> VisionTransformer:
    """Train all weights on an even sample, and return the model."""
    rows = draw_rows(world, 0.0, steps * BATCH, np.random.default_rng([seed, 1]))
    recipe = Recipe(
        epochs=1, batch_size=BATCH, learning_rate=rate, weight_decay=WEIGHT_DECAY, warmup_share=0.1, seed=seed
    )
    finetune(model, Views([world.features.tensor], 0), targets_of(world), recipe, rows=rows)
    return model


def make_base(world: World, steps: Steps, seed: int) -> VisionTransformer:
    """Fine-tune the pretrained blocks: another seed gives an independent reference."""
    return train_evenly(copy.deepcopy(world.base), world, steps=steps.base, rate=BASE_RATE, seed=seed)


def make_model(base: VisionTransformer, world: World, plan: Plan, steps: Steps) -> VisionTransformer:
    """Plant the gap in a copy of the base, then train all weights evenly; without parts, return the base."""
    if not plan.parts:
        return base
    model = copy.deepcopy(base)
    plant(model, world, [parse_part(name) for name in plan.parts], plan.dose, steps=steps.planted, seed=plan.seed)
    return train_evenly(model, world, steps=steps.even, rate=EVEN_RATE, seed=plan.seed)


def plant(model: VisionTransformer, world: World, parts: Sequence[Part], dose: float, *, steps: int, seed: int) -> None:
    """Train some parts, and nothing else, on a sample whose label goes with the group."""
    masks = weights_of(model, parts)
    start = min(part.layer or 0 for part in parts)
    model.requires_grad_(False)
    handles = [p.requires_grad_(True).register_hook(lambda slope, m=mask: slope * m) for p, mask in masks.items()]
    rate = MLP_RATE if parts[0].kind is Kind.MLP else HEAD_RATE
    optimizer = torch.optim.Adam(masks, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    rng = np.random.default_rng([seed, 0])
    rows, targets = draw_rows(world, dose, steps * BATCH, rng), torch.from_numpy(targets_of(world))
    for batch in torch.from_numpy(rows).split(BATCH):
        stream = world.features.tensor[batch].float()
        with torch.no_grad():
            for block in model.blocks[:start]:
                stream = block(stream)
        loss = F.cross_entropy(finish(model, stream, start), targets[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(masks), 1.0)
        optimizer.step()
        schedule.step()
    for handle in handles:
        handle.remove()
    model.requires_grad_(False)


def weights_of(model: VisionTransformer, parts: Sequence[Part]) -> Mapping[nn.Parameter, torch.Tensor]:
    """Return the parameters of some parts, each with a mask of what of it is theirs: values and outputs of heads."""
    masks: dict[nn.Parameter, torch.Tensor] = {}
    for parameter, index in _slices(model, parts):
        masks.setdefault(parameter, torch.zeros_like(parameter))[index] = 1.0
    return masks


def _slices(model: VisionTransformer, parts: Sequence[Part]) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
    for part in parts:
        block = model.blocks[part.layer or 0]
        if part.kind is Kind.MLP:
            yield from ((p, (slice(None),)) for p in block.mlp.parameters())
            continue
        width, inner = block.attn.head_dim, block.attn.num_heads * block.attn.head_dim
        own = slice((part.head or 0) * width, ((part.head or 0) + 1) * width)
        values = slice(2 * inner + own.start, 2 * inner + own.stop)
        yield block.attn.qkv.weight, (values,)
        yield block.attn.qkv.bias, (values,)
        yield block.attn.proj.weight, (slice(None), own)
