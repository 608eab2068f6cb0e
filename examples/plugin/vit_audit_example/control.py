"""A control: an effect that is known, and must show on the audited model before anything is said about groups."""

from __future__ import annotations

import torch

from audit.controls.added import AddedControl
from audit.models.adapters.registry import Model
from audit.patching.api import patch_heads


def moved_by_a_blank(model: Model, images: torch.Tensor, _donors: torch.Tensor) -> list[float]:
    """Patch every head from a blank picture, one head at a time.

    Parameters
    ----------
    model : torch.nn.Module
        The audited model, in evaluation mode.
    images : torch.Tensor
        Some of the audit's images, as the model takes them: (B, C, H, W).
    _donors : torch.Tensor
        As many others, which this control does not use.

    Returns
    -------
    list of float
        For each image the largest change of a class's log-odds by one head, nats. The same for the same images: what
        is random has a seed of its own.
    """
    effects = patch_heads(model, images, torch.zeros_like(images))
    return effects.abs().flatten(1).max(dim=1).values.tolist()


BLANK = AddedControl(
    measure=moved_by_a_blank,
    reduced="smallest",
    relation=">",
    threshold=0.0,
    title="What heads write depends on the picture",
    statistic="smallest change of log-odds over images, by the head that moves most from a blank picture, nats",
    meaning="A model that answers without looking would pass for one without a gap.",
    fix="compare the weights with those in use; this model's heads write the same whatever the image",
)
