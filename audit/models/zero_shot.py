"""Zero-shot classifiers: an image's embedding compared with those of texts that describe the classes.

An image tower's feature is projected into the space it shares with texts and divided by its length; a logit is its
product with a text's embedding, times the temperature that was learned, plus a bias where there is one. Radford et al.
(2021) for CLIP, Zhai et al. (2023) for SigLIP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from audit.models.adapters.registry import Model
from audit.models.converters.conversion import Joint


class ZeroShotHead(nn.Module):
    """The classifier of a zero-shot model.

    Parameters
    ----------
    in_features : int
        Of the image tower.
    classes : int
    joint : Joint
        The space that images and texts share.
    """

    def __init__(self, in_features: int, classes: int, joint: Joint) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, classes
        self.proj = nn.Linear(in_features, joint.width, bias=False) if joint.projects else nn.Identity()
        self.weight = nn.Parameter(torch.randn(classes, joint.width))  # a text's embedding each
        self.logit_scale = nn.Parameter(torch.zeros(()))  # its logarithm
        self.logit_bias = nn.Parameter(torch.zeros(())) if joint.biased else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of features (B, in_features)."""
        logits = self.logit_scale.exp() * self.embed(features) @ self.weight.mT
        return logits if self.logit_bias is None else logits + self.logit_bias

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, joint width) of features, of length 1."""
        return F.normalize(self.proj(features), dim=-1)


def with_zero_shot_head(model: Model, joint: Joint) -> Model:
    """Give a tower the classifier of a zero-shot model, in place, with random texts; return it."""
    model.head = ZeroShotHead(model.head.in_features, model.num_classes, joint)
    return model


@contextmanager
def comparing_with(model: Model, texts: torch.Tensor) -> Iterator[None]:
    """Let a zero-shot model compare with other texts (N, width) for the length of a block: N logits an image."""
    own = model.head.weight
    model.head.weight = nn.Parameter(texts.to(own), requires_grad=False)
    try:
        yield
    finally:
        model.head.weight = own


def together(texts: torch.Tensor) -> torch.Tensor:
    """Return one embedding (width,) for a class of several texts (N, width): the mean direction of theirs.

    As CLIP's authors ensemble prompts: each is divided by its length, then their mean is.
    """
    return F.normalize(F.normalize(texts, dim=-1).mean(0), dim=-1)
