"""Which of a model's outputs is audited: one of several heads, and a single logit as a pair."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from audit.errors import ModelError
from audit.models.adapters.registry import ADAPTERS, Model, adapter
from audit.models.checkpoint import listed
from audit.models.load import COUNTED

Tensors = Mapping[str, torch.Tensor]
FIELD = "model.output_key"


# One logit


def has_one_logit(model: Model, tensors: Tensors) -> bool:
    """Tell whether the classifier among tensors has one output, where the model has two."""
    name = next(iter(adapter(model).classifiers()))
    return model.num_classes == 2 and len(tensors.get(f"{name}.weight", ())) == 1


def as_pair(model: Model, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return tensors whose classifiers give 0 and z instead of one logit z: a softmax of these is its sigmoid."""
    wide = dict(tensors)
    for name in adapter(model).classifiers():
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in wide:
                row = wide[f"{name}.{kind}"]
                wide[f"{name}.{kind}"] = torch.cat([torch.zeros_like(row), row])
    return wide


def with_pair(model: Model) -> Model:
    """Give a model of one logit z the logits 0 and z, in place, and return it."""
    tensors = as_pair(model, model.state_dict())
    model.reset_classifier(2)
    model.load_state_dict(tensors)
    return model.eval()


# Several outputs, in a file


def take_output(model: Model, tensors: Tensors, key: str | None, where: str) -> Tensors:
    """Return a file's tensors with one of its heads as the model's classifier, and the other heads left out.

    A head is a linear layer that reads as many numbers as the model's classifier and is no part of the model. It is
    found by its whole name, or by any part of it between dots.

    Parameters
    ----------
    model : Model
    tensors : mapping of str to torch.Tensor
    key : str, optional
        Without one, a file of one output is returned as it is.
    where : str
        The file, for messages.

    Raises
    ------
    ModelError
        If the file has several outputs and none is named, or the named one is not there or no single linear layer.
    """
    body = adapter(model)
    (classifier, layer), *more = body.classifiers().items()
    last = tuple(f"{name}." for name in body.classifiers())
    begin = next((name.removesuffix(body.mark) for name in tensors if name.endswith(body.mark)), "")
    own = {name for name in model.state_dict() if not name.startswith(last) and not name.endswith(COUNTED)}
    parts = {name.partition(".")[0] for name in own}
    kept, beside = {}, {}
    for name, tensor in tensors.items():
        short = name.removeprefix(begin)
        if short.partition(".")[0] in parts and not short.startswith(last):
            kept[short] = tensor
        else:
            beside[name] = tensor
    heads = sorted(
        name.removesuffix(".weight")
        for name, t in beside.items()
        if name.endswith(".weight") and t.ndim == 2 and t.shape[1] == layer.in_features != t.shape[0]
    )
    of_heads = tuple(f"{head}." for head in heads)
    if key is None:
        whole = own <= kept.keys() and all(name.startswith(of_heads) for name in beside)
        if whole and len(heads) > 1 + len(more):
            raise ModelError(where, f"has several outputs: {listed(heads)}", f"name one under {FIELD}")
        return tensors
    found = sorted({name.rpartition(".")[0] for name in beside if _is_named(name.rpartition(".")[0], key)})
    if len(found) != 1 or found[0] not in heads or more:
        what = f"'{key}' is no linear layer on {layer.in_features} numbers"
        raise ModelError(FIELD, f"{what} in {where}", f"it has {listed(heads)}" if heads else "it has one output")
    given = f"{found[0]}.weight", f"{found[0]}.bias"
    kept |= {f"{classifier}.weight": beside[given[0]]}
    kept |= {f"{classifier}.bias": beside.get(given[1], torch.zeros(len(beside[given[0]])))}
    return kept | {name: t for name, t in beside.items() if not name.startswith(of_heads)}


def _is_named(module: str, key: str) -> bool:
    return module == key or key in module.split(".")


# Several outputs, of a module


class OneOutput(nn.Module):
    """What a module returns under one key.

    Parameters
    ----------
    whole : torch.nn.Module
        Returns a mapping or a sequence of outputs.
    key : str
        Of a sequence for each place, from "0".
    """

    def __init__(self, whole: nn.Module, key: str) -> None:
        super().__init__()
        self.whole, self.key = whole, key

    def forward(self, images: torch.Tensor) -> Any:
        """Return the output for images (B, 3, H, W)."""
        return by_key(self.whole(images))[self.key]


def by_key(answer: Any) -> dict[str, Any]:
    """Return the outputs of a module by their keys; none where it returns one tensor."""
    if isinstance(answer, Mapping):
        return {str(key): value for key, value in answer.items()}
    if isinstance(answer, tuple | list):
        return {str(place): value for place, value in enumerate(answer)}
    return {}


def body_within(module: nn.Module) -> Model | None:
    """Return the first part of a module that is a model of a supported family, other than the module itself."""
    parts = (part for part in module.modules() if part is not module)
    return next((part for part in parts if isinstance(part, tuple(ADAPTERS))), None)


@torch.inference_mode()
def keys_of(module: nn.Module, body: Model) -> list[str]:
    """Return the keys of what a module returns; none where that is one tensor, or images do not pass."""
    side = adapter(body).side
    try:
        return list(by_key(module(torch.zeros(1, 3, side, side))))
    except Exception:  # whatever a module of the user's raises; whoever takes it finds out why
        return []


@torch.no_grad()
def one_head(module: nn.Module, key: str, where: str) -> Model:
    """Return a module's body with the linear layer that gives one output as its classifier.

    Raises
    ------
    ModelError
        If there is no such output, or no single linear layer on what the body gives makes it.
    """
    body = body_within(module)
    if body is None:
        raise ModelError(where, "no part of it is a model of a supported family", "'vit-audit models' lists them")
    keys = keys_of(module, body)
    if key not in keys:
        what = f"the module returns no '{key}'"
        raise ModelError("output_key", what, f"name one of {', '.join(keys)}" if keys else "leave it out")
    inner = {id(part) for part in body.modules()}
    linear = [part for part in module.modules() if isinstance(part, nn.Linear) and id(part) not in inner]
    images = torch.randn(2, 3, *[adapter(body).side] * 2, generator=torch.Generator().manual_seed(0))
    given: list[tuple[nn.Linear, torch.Tensor]] = []
    hooks = [part.register_forward_hook(lambda made, _, out: given.append((made, out))) for part in linear]
    try:
        answer = by_key(module(images))[key]
    finally:
        for hook in hooks:
            hook.remove()
    made = [part for part, out in given if isinstance(answer, torch.Tensor) and torch.equal(out, answer)]
    if not made:
        raise ModelError(where, f"'{key}' is not what a linear layer gives", "give a model whose head is one")
    return _with_classifier(copy.deepcopy(body), made[-1], key, where)


def _with_classifier(body: Model, layer: nn.Linear, key: str, where: str) -> Model:
    body.reset_classifier(layer.out_features)
    (classifier, *more) = adapter(body).classifiers().values()
    if more or classifier.in_features != layer.in_features:
        what = f"the head of '{key}' reads {layer.in_features} numbers, the classifier of a {type(body).__name__} "
        raise ModelError(where, f"{what}{classifier.in_features}", "give a model whose heads read what its body gives")
    classifier.weight.copy_(layer.weight)
    if classifier.bias is not None:
        classifier.bias.copy_(torch.zeros(layer.out_features) if layer.bias is None else layer.bias)
    return body.eval()
