"""The contenders, each patching every head by itself as its own documentation teaches.

All replace a head's columns of z, the input of a timm block's ``attn.proj``, by the donor's. A contender is given a
model of its own, which it may change, and returns a function from images and donors (B, 3, H, W) and the layers to
the patched logits (layers, heads, B, classes). Peers are imported where they are used: they stand in the race's own
environment alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.batching import batches
from audit.patching.engine import Donor, patch_layer
from audit.patching.sites import heads_of, record
from audit.patching.sweep import recipients_at_once
from benchmarks.sweep.summary import HOOKS, ROUGH, SKIP, TOOL

Layers = Sequence[int]
Sweep = Callable[[torch.Tensor, torch.Tensor, Layers], torch.Tensor]
Contender = Callable[[VisionTransformer], Sweep]


def this_tool(model: VisionTransformer, *, precision: torch.dtype = torch.float32) -> Sweep:
    """Patch with this tool's exact engine, in batches of recipients as ``audit.patching.sweep`` has them."""

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        parts = []
        for part in batches(len(images), recipients_at_once(model, 1)):
            recipient, donor = record(model, images[part]), Donor(model, record(model, donors[part]))
            by_layer = [patch_layer(model, recipient, donor, layer, precision=precision) for layer in layers]
            parts.append(torch.stack(by_layer))
        return torch.cat(parts, dim=2)

    return sweep


def plain_hooks(model: VisionTransformer) -> Sweep:
    """Patch with PyTorch's own hooks: the donors' z is kept, then one forward pass a head."""

    def keep(z: dict[int, torch.Tensor], layer: int, _module: nn.Module, args: tuple[torch.Tensor]) -> None:
        z[layer] = args[0]

    def give(z: torch.Tensor, columns: slice, _module: nn.Module, args: tuple[torch.Tensor]) -> None:
        args[0][..., columns] = z[..., columns]

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        z: dict[int, torch.Tensor] = {}
        handles = [model.blocks[i].attn.proj.register_forward_pre_hook(partial(keep, z, i)) for i in layers]
        model(donors)
        for handle in handles:
            handle.remove()

        def patch(layer: int, columns: slice) -> torch.Tensor:
            handle = model.blocks[layer].attn.proj.register_forward_pre_hook(partial(give, z[layer], columns))
            logits: torch.Tensor = model(images)
            handle.remove()
            return logits

        return _every_head(model, layers, patch)

    return sweep


def transformer_lens(model: VisionTransformer) -> Sweep:
    """Patch with TransformerLens: a ``HookedRootModule`` with hook points at z, run with cache, then with hooks."""
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    class HookedModel(HookedRootModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for block in model.blocks:
                block.attn.norm = HookPoint()  # instead of the Identity through which timm passes z
            self.vit = model
            self.setup()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.vit(images)
            return logits

    hooked = HookedModel()

    def swap(z: torch.Tensor, hook: Any, cache: Mapping[str, torch.Tensor], columns: slice) -> torch.Tensor:
        z[..., columns] = cache[hook.name][..., columns]
        return z

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        names = {layer: f"vit.blocks.{layer}.attn.norm" for layer in layers}
        _, cache = hooked.run_with_cache(donors, names_filter=list(names.values()))

        def patch(layer: int, columns: slice) -> torch.Tensor:
            hook = partial(swap, cache=cache, columns=columns)
            logits: torch.Tensor = hooked.run_with_hooks(images, fwd_hooks=[(names[layer], hook)])
            return logits

        return _every_head(model, layers, patch)

    return sweep


def nnsight(model: VisionTransformer) -> Sweep:
    """Patch with nnsight: one trace for the donors, one for each head with z assigned in place."""
    from nnsight import NNsight, save

    traced = NNsight(model)

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        with traced.trace(donors):
            z = save({layer: traced.blocks[layer].attn.proj.input for layer in layers})

        def patch(layer: int, columns: slice) -> torch.Tensor:
            with traced.trace(images):
                traced.blocks[layer].attn.proj.input[..., columns] = z[layer][..., columns]
                logits: torch.Tensor = traced.output.save()
            return logits

        return _every_head(model, layers, patch)

    return sweep


def nnsight_skip(model: VisionTransformer) -> Sweep:
    """Patch with nnsight and, by hand, skip all that stands before the patched layer.

    What enters each layer is kept from one more trace, of the recipients.
    """
    from nnsight import NNsight, save

    traced = NNsight(model)

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        with traced.trace(donors):
            z = save({layer: traced.blocks[layer].attn.proj.input for layer in layers})
        with traced.trace(images):
            embedded = traced.patch_embed.output.save()
            entering = save({layer: traced.blocks[layer].input for layer in layers})

        def patch(layer: int, columns: slice) -> torch.Tensor:
            with traced.trace(images):
                traced.patch_embed.skip(embedded)
                for before in range(layer):
                    traced.blocks[before].skip(entering[layer])
                traced.blocks[layer].attn.proj.input[..., columns] = z[layer][..., columns]
                logits: torch.Tensor = traced.output.save()
            return logits

        return _every_head(model, layers, patch)

    return sweep


def pyvene(model: VisionTransformer) -> Sweep:
    """Patch with pyvene: an ``IntervenableModel`` a head, its function swapping columns, the donors' z collected."""
    import pyvene as pv

    model.config = {}  # pyvene asks every model for one

    def component(layer: int) -> str:
        return f"blocks[{layer}].attn.proj.input"

    def sweep(images: torch.Tensor, donors: torch.Tensor, layers: Layers) -> torch.Tensor:
        collecting = [{"component": component(layer), "intervention": pv.CollectIntervention()} for layer in layers]
        (_, collected), _ = pv.IntervenableModel(collecting, model=model)(base={"x": donors})
        z = dict(zip(layers, collected, strict=True))

        def patch(layer: int, columns: slice) -> torch.Tensor:
            def swap(base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
                base[..., columns] = source[..., columns]
                return base

            patched = pv.IntervenableModel({"component": component(layer), "intervention": swap}, model=model)
            logits: torch.Tensor = patched(base={"x": images}, source_representations=z[layer])[1]
            return logits

        return _every_head(model, layers, patch)

    return sweep


def _every_head(model: VisionTransformer, layers: Layers, patch: Callable[[int, slice], torch.Tensor]) -> torch.Tensor:
    """Return (layers, heads, B, classes) of a function that patches some columns of z of one layer."""
    rows = []
    for layer in layers:
        width = int(model.blocks[layer].attn.head_dim)
        rows.append(
            torch.stack([patch(layer, slice(h * width, (h + 1) * width)) for h in range(heads_of(model, layer))])
        )
    return torch.stack(rows)


CONTENDERS: dict[str, Contender] = {
    TOOL: this_tool,
    ROUGH: partial(this_tool, precision=torch.bfloat16),
    HOOKS: plain_hooks,
    "TransformerLens": transformer_lens,
    "nnsight": nnsight,
    "pyvene": pyvene,
    SKIP: nnsight_skip,
}
