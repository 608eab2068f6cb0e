"""Models whose blocks are in stages, between which the image shrinks; layers are counted through."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from audit.models.adapters.base import Adapter


class Staged(Adapter):
    """Counts the blocks of all stages."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[Sequence[Any]]:
        """The blocks, stage by stage."""

    @property
    def blocks(self) -> Sequence[Any]:
        """The blocks of all stages, in order."""
        return [block for stage in self.stages for block in stage]

    def where(self, layer: int) -> tuple[int, int]:
        """Return stage and place in it of a layer."""
        for number, stage in enumerate(self.stages):
            if layer < len(stage):
                return number, layer
            layer -= len(stage)
        raise IndexError(layer)


class DownsampledStages(Staged):
    """Each stage begins with a part of its own, ``downsample``, through which the last block before it hands on."""

    held_in: ClassVar[str]  # the model's list of stages

    @property
    def stages(self) -> Sequence[Sequence[Any]]:
        """The blocks, stage by stage."""
        return [stage.blocks for stage in getattr(self.model, self.held_in)]

    def _following(self, layer: int) -> int | None:
        """Return the stage that reads what this layer leaves, or None within a stage and at the end."""
        stage, place = self.where(layer)
        ends = place + 1 == len(self.stages[stage]) and stage + 1 < len(self.stages)
        return stage + 1 if ends else None

    def _leads_on(self, stage: int) -> nn.Module:
        module: nn.Module = getattr(self.model, self.held_in)[stage].downsample
        return module

    def hand_on(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """Return what the next layer reads of the stream that a layer's block leaves."""
        following = self._following(layer)
        out: torch.Tensor = stream if following is None else self._leads_on(following)(stream)
        return out

    def modules(self, layer: int) -> Sequence[nn.Module]:
        """Return the modules that are a layer's own: the last of a stage has what leads on, too."""
        following = self._following(layer)
        return [self.blocks[layer], *([] if following is None else [self._leads_on(following)])]

    def names(self, layer: int) -> tuple[str, ...]:
        """Return how the names of a layer's tensors begin."""
        (stage, place), following = self.where(layer), self._following(layer)
        leading_on = () if following is None else (f"{self.held_in}.{following}.downsample.",)
        return (f"{self.held_in}.{stage}.blocks.{place}.", *leading_on)
