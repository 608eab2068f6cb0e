"""What the logits read of a stream, once each image's norms and pools are held as they were: a linear map.

With standard deviations, the weights of an attention pool and the places of maxima held, every logit of image i is

    constant_ic + sum over routes r of directions_rc . (sum over tokens t of weights_irt stream_it)

A route is a way to the logits that tokens share: one for a class token or a mean; one for each head of an attention
pool; where stages merge 2 x 2 tokens, one for each place in the square; one for each channel of a maximum. Directions
are the weights' own, free of the image: what a norm's mean takes away, and its gain, are folded into them. All that
depends on the image is in ``weights``. So a part of the stream adds to the logits what its own weighted mean gives, at
the cost of a product, and parts of one sum add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.norm import RmsNorm
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import PatchMerging
from timm.models.swin_transformer_v2 import PatchMerging as NormedMerging
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from audit.models.zero_shot import ZeroShotHead
from audit.patching.contributions import Component, NotSummedError
from audit.records import PartKind, WhyNoLedger

SQUARE = ((0, 0), (1, 0), (0, 1), (1, 1))  # row and column of the four tokens that are merged, in their order
LEAST_LENGTH = 1e-12  # that F.normalize divides by


@dataclass(frozen=True)
class Reading:
    """What the logits read of a stream (B, T, W)."""

    weights: torch.Tensor  # (B, R, T)
    directions: torch.Tensor  # (R, classes, W)
    constant: torch.Tensor  # (B, classes)

    @property
    def scale(self) -> torch.Tensor:
        """What held norms multiply writes by, on average, (B,)."""
        return self.weights.sum(2).mean(1)

    def of(self, write: torch.Tensor) -> torch.Tensor:
        """Return what a write (B, T, W) adds to the logits: (B, classes)."""
        return torch.einsum("brw,rcw->bc", self.weights @ write, self.directions)

    def of_all(self, write: torch.Tensor) -> torch.Tensor:
        """Return what a vector (W,) adds that is written to every token: (B, classes)."""
        return self.weights.sum(2) @ (self.directions @ write)

    def of_units(self, held: torch.Tensor, out: torch.Tensor, units: int) -> torch.Tensor:
        """Return what each of some units adds to the logits, (B, units, classes).

        Parameters
        ----------
        held : torch.Tensor (B, T, units * inner)
        out : torch.Tensor (W, units * inner)
            What the units write is their part of ``held`` times their columns of this.
        units : int
        """
        along = (self.directions @ out).unflatten(-1, (units, -1))
        return torch.einsum("brkd,rckd->bkc", (self.weights @ held).unflatten(-1, (units, -1)), along)

    def through_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Reading:
        """Return what the logits read of the input of a linear layer, given what they read of its output."""
        before = replace(self, directions=self.directions @ weight)
        return before if bias is None else replace(before, constant=self.constant + self.of_all(bias))

    def through_norm(self, norm: nn.Module, entering: torch.Tensor) -> Reading:
        """Return what the logits read of the input (B, T, W) of a norm, given what they read of its output."""
        if isinstance(norm, nn.Identity):
            return self
        scale, centres = held_scale(norm, entering)
        gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
        directions = self.directions if gain is None else self.directions * gain
        if centres:
            directions = directions - directions.mean(-1, keepdim=True)
        constant = self.constant if shift is None else self.constant + self.of_all(shift)
        return Reading(self.weights * scale.unsqueeze(1), directions, constant)

    def through_merging(self, merging: nn.Module, entering: torch.Tensor) -> Reading:
        """Return what the logits read of what enters the merging of 2 x 2 tokens (B, rows, columns, W)."""
        if type(merging) not in (PatchMerging, NormedMerging):
            raise NotSummedError(WhyNoLedger.UNKNOWN_STAGES, type(merging).__name__)
        made: Any = merging
        rows, columns = entering.shape[1:3]
        padded = F.pad(entering, (0, 0, 0, columns % 2, 0, rows % 2))
        parts = torch.cat([padded[:, i::2, j::2] for i, j in SQUARE], dim=-1)
        squares, tokens = parts.shape[1:3], parts.flatten(1, 2)
        if isinstance(merging, PatchMerging):
            before = self.through_linear(made.reduction.weight, None).through_norm(made.norm, tokens)
        else:
            before = self.through_norm(made.norm, made.reduction(tokens)).through_linear(made.reduction.weight, None)
        weights = before.weights.unflatten(-1, squares)
        apart = weights.new_zeros(*weights.shape[:2], len(SQUARE), *padded.shape[1:3])
        for place, (i, j) in enumerate(SQUARE):
            apart[:, :, place, i::2, j::2] = weights
        directions = before.directions.unflatten(-1, (len(SQUARE), -1)).transpose(1, 2).flatten(0, 1)
        return Reading(apart[..., :rows, :columns].flatten(3).flatten(1, 2), directions, before.constant)


def held_scale(norm: nn.Module, entering: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return what a norm divides each token by, inverted (B, T), and whether it takes the mean away."""
    eps: float = getattr(norm, "eps", 0.0) or torch.finfo(entering.dtype).eps
    if isinstance(norm, nn.LayerNorm):
        return torch.rsqrt(entering.var(-1, unbiased=False) + eps), True
    if type(norm) is RmsNorm or isinstance(norm, nn.RMSNorm):
        return torch.rsqrt(entering.square().mean(-1) + eps), False
    raise NotSummedError(WhyNoLedger.UNKNOWN_NORM, type(norm).__name__)


@dataclass(frozen=True)
class Part:
    """What a component adds to the logits (B, classes), and the scale that held norms gave it (B,)."""

    component: Component
    logits: torch.Tensor
    scale: torch.Tensor


def reading_of(model: Any, leaving: torch.Tensor) -> tuple[Reading, list[Part]]:
    """Return what the logits read of the stream (B, T, W) that leaves the last layer, and what is added behind it.

    That is the constant, which the reading no longer has, and what a pool adds itself.

    Raises
    ------
    NotSummedError
        If that is not linear with norms, attention and maxima held.
    """
    if isinstance(model, VisionTransformerDistilled):
        normed = model.norm(leaving)
        first, second = (
            _pooled(_of_classifier(classifier, normed[:, i]), i, normed)
            for i, classifier in enumerate((model.head, model.head_dist))
        )
        return _finished(_together([first, second], 0.5).through_norm(model.norm, leaving), first.scale.new_ones(()))
    if isinstance(model, VisionTransformer | Eva | Beit):
        return _of_transformer(model, leaving)
    head = model.head  # of Swin
    named = str(head.global_pool.pool_type)
    kind = "avg" if named == "fast" else named.removeprefix("fast")
    normed = model.norm(leaving)
    read = _of_classifier(head.fc, head.global_pool(normed.unsqueeze(1)))
    return _finished(_through_pool(read, kind, normed, 0).through_norm(model.norm, leaving), read.scale)


def _finished(read: Reading, scale: torch.Tensor) -> tuple[Reading, list[Part]]:
    """Part a reading from its constant, to which the held norms give a scale of its own."""
    constant = Part(Component(PartKind.CONSTANT), read.constant, scale.expand(len(read.constant)))
    return replace(read, constant=torch.zeros_like(read.constant)), [constant]


def _of_transformer(model: Any, leaving: torch.Tensor) -> tuple[Reading, list[Part]]:
    normed = model.norm(leaving)
    parts: list[Part] = []
    prefix = 0 if getattr(model, "pool_include_prefix", False) else int(model.num_prefix_tokens)
    pool = getattr(model, "attn_pool", None)
    seen = normed if pool is None or isinstance(model, Eva) else normed[:, prefix:]
    pooled = _pool(model, normed, prefix) if pool is None else pool(seen)
    read = _of_classifier(model.head, model.fc_norm(pooled))
    scale = read.scale
    read = read.through_norm(model.fc_norm, pooled.unsqueeze(1))
    if pool is None:
        read = _through_pool(read, str(model.global_pool), normed, prefix)
    else:
        read, parts = _through_attention(read, pool, seen)
        read = replace(read, weights=F.pad(read.weights, (normed.shape[1] - seen.shape[1], 0)))
    read, constant = _finished(read.through_norm(model.norm, leaving), scale)
    return read, [*constant, *parts]


def _pool(model: Any, normed: torch.Tensor, prefix: int) -> torch.Tensor:
    """Return what a pool makes of normed tokens, (B, W)."""
    kind = str(model.global_pool)
    if kind == "token":
        return normed[:, 0]
    seen = normed[:, prefix:]
    made: dict[str, Callable[[], torch.Tensor]] = {
        "avg": lambda: seen.mean(1),
        "max": lambda: seen.amax(1),
        "avgmax": lambda: 0.5 * (seen.amax(1) + seen.mean(1)),
    }
    if kind not in made:
        raise NotSummedError(WhyNoLedger.NONLINEAR_POOL, f"pool '{kind}'")
    return made[kind]()


def _of_classifier(classifier: nn.Module, features: torch.Tensor) -> Reading:
    """Return what the logits read of features (B, W), as a stream of one token."""
    one = features.new_ones(len(features), 1, 1)
    if isinstance(classifier, ZeroShotHead):
        linear = getattr(classifier.proj, "weight", None)
        length = classifier.proj(features).norm(dim=-1).clamp_min(LEAST_LENGTH)
        directions = classifier.weight if linear is None else classifier.weight @ linear
        bias = classifier.logit_bias
        constant = features.new_zeros(len(features), len(directions)) + (0.0 if bias is None else bias)
        return Reading(one * (classifier.logit_scale.exp() / length)[:, None, None], directions.unsqueeze(0), constant)
    if type(classifier) is not nn.Linear:
        raise NotSummedError(WhyNoLedger.NONLINEAR_POOL, f"classifier {type(classifier).__name__}")
    constant = features.new_zeros(len(features), classifier.out_features)
    constant = constant if classifier.bias is None else constant + classifier.bias
    return Reading(one, classifier.weight.unsqueeze(0), constant)


def _pooled(read: Reading, token: int, tokens: torch.Tensor) -> Reading:
    """Read one token alone."""
    picked = F.one_hot(torch.tensor(token, device=tokens.device), tokens.shape[1]).to(tokens)
    return replace(read, weights=read.weights * picked)


def _through_pool(read: Reading, kind: str, tokens: torch.Tensor, prefix: int) -> Reading:
    """Return what the logits read of the tokens (B, T, W), given what they read of their pool (one token)."""
    if kind == "token":
        return _pooled(read, 0, tokens)
    if kind == "avgmax":
        return _together([_through_pool(read, k, tokens, prefix) for k in ("avg", "max")], 0.5)
    seen = tokens[:, prefix:]
    if kind == "avg":
        share = F.pad(seen.new_full((seen.shape[1],), 1 / seen.shape[1]), (prefix, 0))
        return replace(read, weights=read.weights * share)
    if kind != "max":
        raise NotSummedError(WhyNoLedger.NONLINEAR_POOL, f"pool '{kind}'")
    routes, classes, width = read.directions.shape
    places = F.one_hot(seen.argmax(1) + prefix, tokens.shape[1]).to(tokens)  # (B, W, T)
    weights = (read.weights.unsqueeze(2) * places.unsqueeze(1)).flatten(1, 2)
    directions = torch.diag_embed(read.directions).transpose(1, 2).reshape(routes * width, classes, width)
    return Reading(weights, directions, read.constant)


def _together(readings: list[Reading], share: float) -> Reading:
    """Return what is read when each of several readings counts the same share."""
    return Reading(
        share * torch.cat([r.weights for r in readings], dim=1),
        torch.cat([r.directions for r in readings]),
        share * torch.stack([r.constant for r in readings]).sum(0),
    )


def _through_attention(read: Reading, pool: nn.Module, tokens: torch.Tensor) -> tuple[Reading, list[Part]]:
    """Return what the logits read of the tokens (B, T, W) that an attention pool sees, and what the pool adds itself.

    Its attention is held; its MLP is a part of its own.
    """
    if type(pool) is not AttentionPoolLatent or pool.latent_len != 1:
        raise NotSummedError(WhyNoLedger.NONLINEAR_POOL, f"pool {type(pool).__name__}")
    p: Any = pool
    placed = tokens if p.pos_embed is None else tokens + p.pos_embed
    heads = p.num_heads
    key_weight, value_weight = p.kv.weight.chunk(2)
    key_bias, value_bias = (None, None) if p.kv.bias is None else p.kv.bias.chunk(2)
    keys = F.linear(placed, key_weight, key_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
    query = p.q(p.latent).unflatten(-1, (heads, -1)).transpose(1, 2)
    shares = (p.q_norm(query) @ p.k_norm(keys).mT * p.scale).softmax(-1).squeeze(2)  # (B, heads, T)
    parts, before = [], read
    if p.mlp is not None:
        values = F.linear(placed, value_weight, value_bias).unflatten(-1, (heads, -1))
        seen = p.proj(torch.einsum("bht,bthd->bhd", shares, values).flatten(1))
        added = read.of(p.mlp(p.norm(seen)).unsqueeze(1))
        parts.append(Part(Component(PartKind.POOL_MLP), added, read.scale))
    if isinstance(p.proj, nn.Linear):
        before = before.through_linear(p.proj.weight, p.proj.bias)
    if value_bias is not None:
        before = replace(before, constant=before.constant + before.of_all(value_bias))
    along = before.directions.squeeze(0).unflatten(-1, (heads, -1))  # (classes, heads, head width)
    directions = torch.einsum("chd,hdw->hcw", along, value_weight.unflatten(0, (heads, -1)))
    through = Reading(shares * before.weights, directions, before.constant)
    if p.pos_embed is not None:
        placed_at = through.of(p.pos_embed.expand_as(tokens))
        through = replace(through, constant=through.constant + placed_at)
    parts.append(Part(Component(PartKind.POOL), through.constant - read.constant, read.scale))
    return replace(through, constant=read.constant), parts
