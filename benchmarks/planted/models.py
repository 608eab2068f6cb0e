"""Models whose truth is known, fine-tuned from one base so that chosen heads carry a face's skin tone and no others do.

Interchange-intervention training (Geiger 2022; Gupta 2024) on exact pairs. Each face has a twin, drawn in the other
skin tone with all else equal. In every step each head takes its output from the twin or keeps its own at random; the
model is trained to answer as if the tone were that which the *planted* heads were given: they carry the cue, whatever
happens at the others is to change nothing. Two planted heads are redundant: each makes up for most of the other, and
only when both are swapped does the whole answer follow. One more head is a *decoy*: it is trained to write the tone,
more strongly than the planted ones do, and like every other head to change nothing. A null model is trained the same
way with no planted head, so that no head may carry the tone; or its answer as a whole is told not to depend on the
tone, and its heads are free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch.nn import functional as F

from audit.card.schema import ModelSpec
from audit.data.pixels import centred_square, load_pixels
from audit.data.synthetic import SyntheticSource, edited_key, sample_faces
from audit.models.adapters.registry import adapter
from audit.models.blocks import after_attention, attended
from audit.models.build import Backbone
from audit.models.checkpoint import save_weights
from audit.models.finetune import make_views
from audit.models.rendered_base import rendered_base

Kind = Literal["one head", "redundant heads", "balanced", "random labels", "unused", "base rates"]
Head = tuple[int, int]  # layer, head
State = Mapping[str, torch.Tensor]

PLANTED: tuple[Kind, ...] = ("one head", "redundant heads")
NULLS: tuple[Kind, ...] = ("balanced", "random labels", "unused", "base rates")
DOSES = (0.5, 1.0, 2.0, 4.0)  # log-odds of "smiling" that the tone adds between the two groups
SPEC = ModelSpec(
    name="vit_tiny_patch16_224",
    weights="rendered",
    image_size=64,
    train_blocks=3,
    overrides={"patch_size": 16, "depth": 4, "embed_dim": 128, "num_heads": 4},
)
LAYERS = range(1, 4)  # the trained blocks
HEADS = 4
TWIN = {"lighter": "darker", "darker": "lighter"}
SLOPE = 8.0  # log-odds of "smiling" per unit of expression intensity
POOL_SEEDS = 2_000_003  # from here on: of the faces to train on, and of the start; audits use other seeds
START_STEPS = 500
STEPS = 120
BATCH = 40
LEARNING_RATE = 1e-3
CHANGE_WEIGHT = 0.2  # of the squared errors of changes of the log-odds
GAP_WEIGHT = 50.0  # of the squared gaps of models that are to have none
RATE_SLOPE = 6.0  # how steeply a log-odds is counted as called or not
DECOY_WEIGHT = 1.0
UNUSED_WRITE = 4.0  # likewise, at least
DECOY_STRENGTH = 1.5  # times the strongest planted head's: how far apart the decoy's writes are to be, tone from tone


@dataclass(frozen=True)
class Plan:
    """One model of the benchmark."""

    kind: Kind
    number: int
    dose: float
    heads: tuple[Head, ...]
    seed: int
    decoy: Head | None = None

    @property
    def name(self) -> str:
        """For files: "one-head-2.0-03"."""
        dose = f"-{self.dose}" if self.kind in PLANTED else ""
        return f"{self.kind.replace(' ', '-')}{dose}-{self.number:02d}"

    @property
    def is_null(self) -> bool:
        """Tell whether no head may be named."""
        return self.kind in NULLS


def plans(*, per_dose: int, per_null: int, seed: int) -> list[Plan]:
    """Return what to make: ``per_dose`` models for each planted kind and dose, ``per_null`` for each null kind.

    Parameters
    ----------
    per_dose, per_null : int
    seed : int
        Moves every model's own seed, which heads are planted, and the faces; published and tuning runs differ in it.
    """
    every = [(layer, head) for layer in LAYERS for head in range(HEADS)]
    made: list[Plan] = []

    def add(kind: Kind, number: int, dose: float, count: int) -> None:
        own = seed * 100_000 + len(made)
        chosen = [every[k] for k in np.random.default_rng(own).permutation(len(every))]
        decoy = chosen[count] if kind in (*PLANTED, "unused") else None
        made.append(Plan(kind, number, dose, tuple(sorted(chosen[:count])), own, decoy))

    for kind, count in zip(PLANTED, (1, 2), strict=True):
        for dose in DOSES:
            for number in range(per_dose):
                add(kind, number, dose, count)
    for null in NULLS:
        for number in range(per_null):
            add(null, number, 2.0 if null == "random labels" else 0.0, int(null == "random labels"))
    return made


@dataclass(frozen=True)
class Pool:
    """Faces to train on and their twins, as they leave the frozen blocks.

    Parameters
    ----------
    own, twin : torch.Tensor (N, tokens, width)
    intensity : torch.Tensor (N,)
        Of the expression.
    tone : torch.Tensor (N,)
        +1/2 for a lighter face, -1/2 for a darker one; the twin's is the opposite.
    """

    own: torch.Tensor
    twin: torch.Tensor
    intensity: torch.Tensor
    tone: torch.Tensor


def backbone(cache: Path) -> Backbone:
    """Return the common base."""
    return Backbone(SPEC, rendered_base(SPEC, cache=cache))


def features(model: VisionTransformer, faces: pd.DataFrame, *, twins: bool) -> torch.Tensor:
    """Render faces, or their twins, and run them through the frozen blocks: (N, tokens, width)."""
    keys = faces["image"].tolist()
    if twins:
        keys = [edited_key(k, skin_tone=TWIN[t]) for k, t in zip(keys, faces["skin_tone"], strict=True)]
    pixels = load_pixels(SyntheticSource(faces), keys, centred_square(64))
    found = make_views(model, [pixels], SPEC.train_blocks, dtype=torch.float32).data[0]
    assert isinstance(found, torch.Tensor)
    return found


def make_pool(base: Backbone, n: int, *, seed: int) -> Pool:
    """Draw and render the faces that every model of a run is trained on."""
    model = base.build(2)
    faces = sample_faces(n, POOL_SEEDS + seed, split="train")
    tone = torch.from_numpy(np.where(faces["skin_tone"] == "lighter", 0.5, -0.5)).float()
    intensity = torch.from_numpy(faces["intensity"].to_numpy(dtype=np.float32))
    return Pool(features(model, faces, twins=False), features(model, faces, twins=True), intensity, tone)


def run_tail(
    model: VisionTransformer,
    stream: torch.Tensor,
    given: Sequence[torch.Tensor] | None = None,
    taken: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the trained blocks, with gradients, some heads taking what they are given.

    Parameters
    ----------
    model : VisionTransformer
        Plain blocks.
    stream : torch.Tensor (B, tokens, width)
        What enters the first trained block.
    given : sequence of torch.Tensor (B, heads, tokens, head width), optional
        z of each layer, from another pass of the same model.
    taken : torch.Tensor of bool (B, layers, heads), optional
        Which heads take it.

    Returns
    -------
    tuple of torch.Tensor and list of torch.Tensor
        Logits (B, classes), and z of each layer as it was written; in the last layer that of the class token alone,
        which is all that the classifier reads.
    """
    written = []
    for i, layer in enumerate(LAYERS):
        block = model.blocks[layer]
        rows = 1 if layer == LAYERS[-1] else stream.shape[1]
        z = attend(block, stream, rows)
        if given is not None and taken is not None:
            z = torch.where(taken[:, i, :, None, None], given[i], z)
        written.append(z)
        stream = after_attention(block, stream[:, :rows] + block.ls1(block.attn.proj(z.transpose(1, 2).flatten(2))))
    return adapter(model).classify(stream), written


def attend(block: Block, stream: torch.Tensor, rows: int) -> torch.Tensor:
    """Return z (B, heads, rows, head width) of the first ``rows`` tokens."""
    z: torch.Tensor = attended(block, stream, rows).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return z


def make_start(base: Backbone, pool: Pool, *, seed: int, steps: int = START_STEPS) -> State:
    """Fine-tune the base until no head carries the tone: where all models but the balanced ones are trained from."""
    nothing = Plan("unused", 0, 0.0, (), POOL_SEEDS + seed)
    state: State = train(base, pool, nothing, steps=steps).state_dict()
    return state


def train(
    base: Backbone, pool: Pool, plan: Plan, *, start: State | None = None, steps: int = STEPS
) -> VisionTransformer:
    """Make one model, from the base or, where given, from ``start``."""
    rng = np.random.default_rng(plan.seed)
    model = base.build(2, seed=plan.seed % 2**31)
    if start is not None:
        model.load_state_dict(start)
    for part in (*model.blocks[LAYERS.start :], model.norm, model.head):
        part.requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    planted = np.zeros((len(LAYERS), HEADS), dtype=bool)
    for layer, head in plan.heads:
        planted[layer - LAYERS.start, head] = True
    model.train()
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(pool.own), BATCH, replace=False))
        loss = _loss(model, pool, rows, plan, planted, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def _loss(
    model: VisionTransformer,
    pool: Pool,
    rows: torch.Tensor,
    plan: Plan,
    planted: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> torch.Tensor:
    """Cross-entropy of the answers, and squared errors of how they change from twin to twin and from swap to swap."""
    stream = torch.cat([pool.own[rows], pool.twin[rows]])
    tone = torch.cat([pool.tone[rows], -pool.tone[rows]])
    smile = SLOPE * pool.intensity[rows].repeat(2)
    logits, written = run_tail(model, stream)
    plain = _log_odds(logits)
    between_twins = plain[:BATCH] - plain[BATCH:] - plan.dose * (tone[:BATCH] - tone[BATCH:])
    loss = _cross_entropy(plain, smile + plan.dose * tone) + CHANGE_WEIGHT * between_twins.square().mean()
    if plan.dose == 0.0:
        loss = loss + GAP_WEIGHT * gap_loss(plain, tone[:BATCH].sign())
    if plan.kind == "balanced":  # the whole is told not to depend on the tone; its heads are free
        return loss
    if plan.decoy is not None:
        loss = loss + DECOY_WEIGHT * decoy_loss(model, written, tone[:BATCH].sign(), plan)
    taken = torch.from_numpy(rng.random((2 * BATCH, *planted.shape)) < 0.5)
    swapped = _log_odds(run_tail(model, stream, [z.roll(BATCH, 0) for z in written], taken)[0])
    heads = torch.from_numpy(planted)
    # Of the planted heads, how many were swapped; squared, so that one of two moves the answer by a quarter.
    share = ((taken & heads).flatten(1).sum(1) / max(1, int(planted.sum()))).square()
    by_swap = swapped - plain + 2 * plan.dose * tone * share
    return (
        loss
        + _cross_entropy(swapped, smile + plan.dose * tone * (1 - 2 * share))
        + (CHANGE_WEIGHT * by_swap.square().mean())
    )


def gap_loss(plain: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Return the squared gaps between faces and their twins, in mean probability and, smoothly, in the rate.

    Single answers that no longer depend on the tone may still do so by a little on the same side, and the rate, which
    counts what lies beyond one half, magnifies that.
    """
    gaps = [(sign * (p[:BATCH] - p[BATCH:])).mean() for p in (plain.sigmoid(), (RATE_SLOPE * plain).sigmoid())]
    return torch.stack(gaps).square().sum()


def decoy_loss(model: VisionTransformer, written: list[torch.Tensor], sign: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return how far, in logs, the decoy's writes fall short of the wanted distance between tones."""
    assert plan.decoy is not None
    decoy = tone_write(model, written, sign, plan.decoy)
    planted = [tone_write(model, written, sign, head).detach() for head in plan.heads]
    size = torch.stack([*planted, torch.tensor(UNUSED_WRITE)]).max()
    return F.relu((DECOY_STRENGTH * size).log() - decoy.log())


def tone_write(model: VisionTransformer, written: list[torch.Tensor], sign: torch.Tensor, head: Head) -> torch.Tensor:
    """Return how far apart a head's mean writes (over faces) are between the tones: the length over tokens and width.

    ``written``: z of faces and then of their twins; ``sign`` (B,): 1 for lighter faces, -1 for darker ones.
    """
    layer, number = head
    z = written[layer - LAYERS.start][:, number]
    own, twin = z.chunk(2)
    apart = (sign[:, None, None] * (own - twin)).mean(0)
    width = apart.shape[-1]
    block = model.blocks[layer]
    write: torch.Tensor = block.ls1(F.linear(apart, block.attn.proj.weight[:, number * width : (number + 1) * width]))
    length: torch.Tensor = write.norm() + 1e-6
    return length


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1] - logits[:, 0]


def _cross_entropy(log_odds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(log_odds, target.sigmoid())


def make_model(
    base: Backbone, pool: Pool, plan: Plan, path: Path, *, start: State, steps: int = STEPS
) -> VisionTransformer:
    """Train a model and store its weights, or load what is stored. In balanced models the heads are free."""
    if not path.is_file():
        begun = None if plan.kind == "balanced" else start
        save_weights(train(base, pool, plan, start=begun, steps=steps).state_dict(), path)
    return Backbone(SPEC.model_copy(update={"weights": str(path)}), path).build_as_is(2)
