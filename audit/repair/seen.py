"""Images with what the audited model makes of them, computed in one pass and held in memory, never written."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from audit.batching import batches
from audit.data.ahead import in_image_batches
from audit.data.pixels import Images, Pixels, select
from audit.models.adapters.registry import Model, adapter, input_channels
from audit.models.blocks import is_plain, leading_rows, rows_read
from audit.models.device import device_of
from audit.models.finetune import KEPT_AT_MOST
from audit.models.predict import Floats, finish, predict_logits
from audit.models.readout import Readout
from audit.models.transforms import as_input

State: TypeAlias = Mapping[str, torch.Tensor]
Rows = npt.NDArray[np.int64]
AT_ONCE = 64  # images
EMBEDDING = -1  # in place of a block: what comes before all of them
SAME = 1e-4  # of the largest logit: how far the classifier's own product may be from the logits


@dataclass(frozen=True)
class LastLayer:
    """The linear layers that give the logits, as one: ``features @ weight.T + bias``.

    Where there are several (distilled models average two), features and weights stand side by side.
    """

    names: tuple[str, ...]
    weight: torch.Tensor  # (classes, D), float32, on the processor
    bias: torch.Tensor  # (classes,)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of features (N, D)."""
        return features @ self.weight.T + self.bias

    def shifted(self, outcome: int, shift: float, readout: Readout) -> LastLayer:
        """Return a last layer whose logit of the outcome is higher by ``shift`` (nats), or the others' lower."""
        bias = self.bias.clone()
        bias[outcome] += shift
        return LastLayer(self.names, self.weight, bias).as_read(readout)

    def as_read(self, readout: Readout) -> LastLayer:
        """Return a last layer of the same probabilities whose first logit is 0, where the model has one logit."""
        if not readout.one_logit:
            return self
        return LastLayer(self.names, self.weight - self.weight[:1], self.bias - self.bias[:1])

    def folded_into(self, state: State) -> dict[str, torch.Tensor]:
        """Return a copy of weights with this last layer in them."""
        new = {name: tensor.clone() for name, tensor in state.items()}
        widths = [state[f"{name}.weight"].shape[1] for name in self.names]
        mean = torch.stack([state[f"{name}.bias"] / len(widths) for name in self.names]).sum(0)
        for name, part in zip(self.names, self.weight.split(widths, dim=1), strict=True):
            new[f"{name}.weight"] = (part * len(widths)).contiguous()
            new[f"{name}.bias"] = self.bias.clone() if len(widths) == 1 else new[f"{name}.bias"] + (self.bias - mean)
        return new


def last_layer_in(model: Model, state: State) -> LastLayer | None:
    """Return the last layer of weights; None where it is not linear with a bias."""
    layers = adapter(model).classifiers()
    if not layers or any(type(layer) is not nn.Linear or layer.bias is None for layer in layers.values()):
        return None
    parts = [state[f"{name}.weight"].detach().cpu() / len(layers) for name in layers]
    biases = [state[f"{name}.bias"].detach().cpu() / len(layers) for name in layers]
    return LastLayer(tuple(layers), torch.cat(parts, dim=1), torch.stack(biases).sum(0))


def last_layer_of(model: Model) -> LastLayer | None:
    """Return the last layer of a model; None where its product is not the logits, as images of noise show."""
    found = last_layer_in(model, model.state_dict())
    if found is None:
        return None
    noise = torch.Generator().manual_seed(0)
    side = adapter(model).side
    images = torch.randn(2, input_channels(model), side, side, generator=noise).to(device_of(model))
    with torch.inference_mode():
        logits, features, _ = _pass(model.eval(), adapter(model).embed(images), 0, found.names)
    assert features is not None
    return (
        found if torch.allclose(found.logits(features), logits, rtol=0, atol=SAME * float(logits.abs().max())) else None
    )


@dataclass(frozen=True)
class Seen:
    """Images, and what the audited model makes of them.

    Parameters
    ----------
    model : Model
    images : Images
    start : int
        Block whose input is held in memory, where it takes no more than ``kept_at_most`` bytes; the depth: of none.
    kept_at_most : int
        Bytes.
    """

    model: Model
    images: Images
    start: int
    kept_at_most: int = KEPT_AT_MOST

    def __len__(self) -> int:
        return len(self.images)

    @property
    def logits(self) -> Floats:
        """Logits (N, classes) of the audited model."""
        return self._looked[0]

    @property
    def features(self) -> torch.Tensor:
        """What the last layer reads (N, D); of a model whose last layer is linear."""
        features = self._looked[1]
        assert features is not None
        return features

    @property
    def holds(self) -> bool:
        """Tell whether the input of block ``start`` is held."""
        return self._looked[2] is not None

    @torch.inference_mode()
    def answer(self, state: State, rows: Rows | None = None) -> Floats:
        """Return the logits (N, classes) of other weights, computed from the first block that they change on.

        Parameters
        ----------
        state : mapping of str to torch.Tensor
        rows : numpy.ndarray, optional
            Of the images; all where not given.
        """
        rows = np.arange(len(self)) if rows is None else rows
        first = first_changed(self.model, state)
        if first is None:
            return self.logits[rows]
        last = last_layer_in(self.model, state) if first == adapter(self.model).depth else None
        if last is not None and self._looked[1] is not None and _only(self.model, state, last.names):
            return last.logits(self.features[torch.from_numpy(rows)]).numpy()
        model = with_state(self.model, state)
        if first == EMBEDDING:
            return predict_logits(model, select(self.images, rows), batch=AT_ONCE)
        parts = [finish(model, stream, first).cpu().numpy() for _, stream in self.entering(first, rows)]
        return np.concatenate(parts).astype(np.float32)

    def entering(self, block: int, rows: Rows) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield which of some rows a batch is of, and the stream that enters a block in it, where the model is."""
        held, device = self._looked[2], device_of(self.model)
        for part in batches(len(rows), AT_ONCE):
            if held is not None and block >= self.start:
                with torch.inference_mode():
                    stream = held[torch.from_numpy(rows[part])].to(device)
                    stream = run_blocks(self.model, stream, self.start, block)
            else:
                found = in_image_batches(
                    lambda pixels: self._stream(pixels, block), self.images, rows[part], size=AT_ONCE
                )
                stream = torch.cat(found)
            yield part, stream.clone()  # outside of inference mode, so that a gradient may pass through what reads it

    @torch.inference_mode()
    def _stream(self, pixels: Pixels, block: int) -> torch.Tensor:
        stream = adapter(self.model).embed(as_input(self.model, pixels))
        return run_blocks(self.model, stream, 0, block)

    @cached_property
    def _looked(self) -> tuple[Floats, torch.Tensor | None, torch.Tensor | None]:
        """Logits, features and the stream that enters block ``start``, of one pass over all images."""
        model, depth = self.model.eval(), adapter(self.model).depth
        last = last_layer_of(model)
        keeps = self.start < depth and self._size(self.start) <= self.kept_at_most
        if last is None and not keeps:
            return predict_logits(model, self.images, batch=AT_ONCE), None, None

        @torch.inference_mode()
        def look(pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
            start = self.start if keeps else 0
            stream = self._stream(pixels, start)
            logits, features, _ = _pass(model, stream, start, () if last is None else last.names)
            return logits, features, stream.cpu() if keeps else None

        logits, features, streams = zip(*in_image_batches(look, self.images, size=AT_ONCE), strict=True)
        return (
            torch.cat(logits).numpy().astype(np.float32),
            None if last is None else torch.cat(features),
            torch.cat(streams) if keeps else None,
        )

    def _size(self, block: int) -> int:
        """Return how many bytes the streams take that enter a block."""
        one = in_image_batches(lambda pixels: self._stream(pixels, block).numel(), self.images, np.arange(1), size=1)
        return 4 * one[0] * len(self)


def _pass(
    model: Model, stream: torch.Tensor, start: int, names: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return logits, what the named linear layers read side by side, and the stream as it was."""
    read: dict[str, torch.Tensor] = {}

    def keeping(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            read[name] = args[0].detach().flatten(1).cpu()

        return model.get_submodule(name).register_forward_pre_hook(keep)

    handles = [keeping(name) for name in names]
    try:
        logits = finish(model, stream, start).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.cat([read[name] for name in names], dim=1) if names else None, stream


def run_blocks(model: Model, stream: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return the stream that enters block ``stop``, of what enters block ``start``."""
    body = adapter(model)
    for layer in range(start, stop):
        stream = body.run(layer, stream)
    return stream


def run_as_read(model: Model, layer: int, stream: torch.Tensor) -> torch.Tensor:
    """Run one block, of the last one only the tokens that the classifier reads, as a whole pass does."""
    body = adapter(model)
    rows = rows_read(model) if layer == body.depth - 1 else None
    if rows is not None and is_plain(model, layer):
        return leading_rows(body.blocks[layer], stream, rows)
    return body.run(layer, stream)


def with_state(model: Model, state: State) -> Model:
    """Return a copy of a model with other weights, in evaluation mode, where the model is."""
    made = copy.deepcopy(model)
    made.load_state_dict(state)
    made.requires_grad_(False)
    return made.eval()


def first_changed(model: Model, state: State) -> int | None:
    """Return the first block that weights differ from a model's in; the depth: after all blocks; None: nowhere.

    ``EMBEDDING`` where what comes before the blocks differs.
    """
    body = adapter(model)
    own = model.state_dict()
    changed = [name for name, tensor in state.items() if not torch.equal(tensor, own[name].cpu())]
    if not changed:
        return None
    places: list[int] = []
    begins = {begin: layer for layer in range(body.depth) for begin in body.names(layer)}
    begins |= {f"{name}.": body.depth for name in body.last}
    for name in changed:
        found = [begin for begin in begins if name.startswith(begin)]
        places.append(begins[max(found, key=len)] if found else EMBEDDING)
    return min(places)


def _only(model: Model, state: State, names: tuple[str, ...]) -> bool:
    """Tell whether weights differ from a model's in the named layers alone."""
    own, begins = model.state_dict(), tuple(f"{name}." for name in names)
    return all(name.startswith(begins) or torch.equal(t, own[name].cpu()) for name, t in state.items())
