"""Attribution patching: a first-order estimate of every head's patch at once, from one backward pass a class.

What a head writes enters the residual stream as a sum, so the gradient with respect to it is the gradient with respect
to the stream after that layer's attention, the same for all heads of the layer. The estimate of a patch is its inner
product with the change of the write (Nanda 2023). It is wrong where the model is far from linear between recipient and
donor: softmax saturation, effects that cancel, points without slope. It screens; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.patching.engine import Donor
from audit.patching.sites import Trace, head_writes


def gradients(
    model: VisionTransformer, images: torch.Tensor, scalar: Callable[[torch.Tensor], torch.Tensor], layers: range
) -> dict[int, torch.Tensor]:
    """Return the gradient of a scalar with respect to the residual stream after each layer's attention.

    Parameters
    ----------
    model : VisionTransformer
        In evaluation mode.
    images : torch.Tensor (B, 3, H, W)
    scalar : callable
        From logits (B, classes) to (B,), such as a class's log-odds.
    layers : range
        Which layers, 0-based.

    Returns
    -------
    dict of int to torch.Tensor (B, tokens, width)
    """
    probes: dict[int, torch.Tensor] = {}

    def probe(layer: int) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor:
            probes[layer] = torch.zeros_like(out, requires_grad=True)
            return out + probes[layer]

        return hook

    handles = [model.blocks[i].ls1.register_forward_hook(probe(i)) for i in layers]
    try:
        with torch.enable_grad():
            found = torch.autograd.grad(scalar(model(images)).sum(), [probes[i] for i in layers])
    finally:
        for handle in handles:
            handle.remove()
    return dict(zip(layers, found, strict=True))


@torch.inference_mode()
def attribute(
    model: VisionTransformer, recipient: Trace, donor: Donor, slopes: dict[int, torch.Tensor]
) -> torch.Tensor:
    """Estimate what patching each head by itself does to the scalar whose ``gradients`` are given.

    Parameters
    ----------
    model : VisionTransformer
        The recipient's.
    recipient : Trace
        Of B images, those of the gradients.
    donor : Donor
        Row i donates to recipient i.
    slopes : dict of int to torch.Tensor (B, tokens, width)
        From ``gradients``.

    Returns
    -------
    torch.Tensor (B, layers, heads)
        In the order of ``slopes``.
    """
    columns = []
    for layer, slope in slopes.items():
        change = head_writes(donor.model, layer, donor.trace.z[layer]) - head_writes(model, layer, recipient.z[layer])
        columns.append((change * slope).sum((-1, -2)).T)
    return torch.stack(columns, dim=1)
