"""Names of tensors that training code has put something before, or part of them elsewhere, fitted to a model's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.checkpoint import SAVE, STRANGERS, listed
from audit.models.converters.conversion import Conversion

Tensors = Mapping[str, torch.Tensor]
COUNTED = "num_batches_tracked"  # by batch norms of late versions of torch; nothing is computed from it


@dataclass(frozen=True)
class Fitted:
    """Tensors under a model's names, and how they came to have them."""

    tensors: dict[str, torch.Tensor]
    stripped: str  # what was before the names of all of the model's tensors, "" where nothing
    # name of the module in the file that is the model's classifier, where it stood outside the model; else ""
    classifier: str
    left_over: tuple[str, ...]  # names of tensors in the file that are no part of the model


def fit_names(
    model: Model, tensors: Tensors, where: str, *, keep_classifier: bool, conversion: Conversion | None
) -> Fitted:
    """Find the module of a file whose tensors are the model's, by their names.

    Raises
    ------
    ModelError
        If there are several such modules, or there is something beside the model that may be part of it.
    """
    classifiers = tuple(f"{name}." for name in adapter(model).classifiers())
    body = {n for n in model.state_dict() if not n.endswith(COUNTED) and not n.startswith(classifiers)}
    wanted = {n for n in model.state_dict() if n.startswith(classifiers) or n in body} if keep_classifier else body
    prefix = _prefix(tensors, wanted, where, conversion)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    fitted = _renamed(inside, conversion)
    beside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    lacking = wanted - set(fitted)
    found = ""
    if keep_classifier and lacking and not lacking & body:
        surplus = {prefix + name: fitted[name] for name in fitted if name not in wanted and conversion is None}
        found = _classifier_of(model, beside | surplus)
    if found:
        moved = {name: f"{found}.{name.rpartition('.')[2]}" for name in lacking}
        beside = {name: tensor for name, tensor in beside.items() if name not in moved.values()}
        fitted = {name: tensor for name, tensor in fitted.items() if prefix + name not in moved.values()}
        fitted |= {name: tensors[old] for name, old in moved.items() if old in tensors}
    own = {name: tensor for name, tensor in fitted.items() if name in wanted or not STRANGERS.search(name)}
    beside |= {prefix + name: tensor for name, tensor in fitted.items() if name not in own}
    if keep_classifier and set(own) >= wanted:
        _check_left_over(beside, where, alone=bool(prefix) and not found)
    unknown = [] if conversion is None else [prefix + name for name in inside if not conversion.takes(name)]
    return Fitted(own, prefix, found, tuple(sorted([*beside, *unknown])))


def _prefix(tensors: Tensors, wanted: set[str], where: str, conversion: Conversion | None) -> str:
    """Return what is before the names of the model's tensors: that under which most of them are found."""
    counts = Counter(p for name in tensors for p in _beginnings(name))
    likely = ["", *(p for p, count in counts.items() if 2 * count >= len(wanted))]
    empty = {name: tensor.to("meta") for name, tensor in tensors.items()}
    fits: dict[str, int] = {}
    for prefix in likely:
        inside = {name.removeprefix(prefix): tensor for name, tensor in empty.items() if name.startswith(prefix)}
        fits[prefix] = len(wanted & set(_renamed(inside, conversion)))
    most = max(fits.values())
    best = min((p for p in likely if fits[p] == most), key=len)
    rivals = [p for p in likely if fits[p] == most and not p.startswith(best)]
    if rivals and 2 * most > len(wanted):
        names = ", ".join(p.rstrip(".") for p in sorted([best, *rivals]))
        raise ModelError(where, f"holds {len(rivals) + 1} models of one architecture: {names}", SAVE)
    return best


def _beginnings(name: str) -> list[str]:
    """Return the modules that a tensor is in: "a.", "a.b.", ..."""
    *modules, _ = name.split(".")
    return [".".join(modules[: i + 1]) + "." for i in range(len(modules))]


def _renamed(tensors: Tensors, conversion: Conversion | None) -> dict[str, torch.Tensor]:
    return dict(tensors) if conversion is None else conversion.renamed(tensors)


def _classifier_of(model: Model, tensors: Tensors) -> str:
    """Return the linear layer among tensors that reads what the model's classifier reads, where there is but one.

    A layer that follows others, such as ``head.2``, is none: what these do is not in the file.
    """
    classifiers = list(adapter(model).classifiers().values())
    if len(classifiers) != 1:
        return ""
    found = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] == classifiers[0].in_features
        and tensors.get(name.removesuffix("weight") + "bias", tensor).shape == tensor.shape[:1]
        and not re.search(r"\.[1-9]\d*\.weight$", name)
    ]  # fmt: skip
    return found[0] if len(found) == 1 else ""


def _check_left_over(beside: Tensors, where: str, *, alone: bool) -> None:
    """Raise where something beside a whole model may be part of it; a vector beside a whole module is not."""
    doubtful = [n for n, t in beside.items() if not STRANGERS.search(n) and not (alone and t.ndim < 2)]
    if doubtful:
        what = f"holds more than the model, which may be part of it: {listed(sorted(doubtful))}"
        raise ModelError(where, what, SAVE)
