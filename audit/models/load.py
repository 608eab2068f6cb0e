"""Weights into an architecture: every tensor fits, or the file is refused with the names of those that do not."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping

import timm
import torch

from audit.errors import ModelError
from audit.models.adapters.registry import ADAPTERS, Model, adapter
from audit.models.checkpoint import Checkpoint, listed
from audit.models.converters.conversion import Conversion
from audit.models.fitting import Fitted, fit_names
from audit.models.undrawn import without_memory

Tensors = Mapping[str, torch.Tensor]
Filter = Callable[[Tensors, Model], dict[str, torch.Tensor]]
PUBLISHED_SWIN = "layers.0.downsample.reduction.weight"  # in Microsoft's files; in timm's, the first stage has none
COUNTED = "num_batches_tracked"  # by batch norms of late versions of torch; nothing is computed from it


def fit_tensors(
    model: Model,
    tensors: Tensors,
    where: str,
    *,
    keep_classifier: bool,
    conversion: Conversion | None = None,
    classifier: Callable[[Tensors], Tensors] | None = None,
) -> Fitted:
    """Return the tensors of a file as a model takes them: by its names, position grids resampled to its image size.

    Parameters
    ----------
    model : Model
    tensors : mapping of str to torch.Tensor
        Under timm's names or those of ``conversion``, with or without something before them; of any floating-point
        type, of which the model's float32 is made as they are copied.
    where : str
        The file, for messages.
    keep_classifier : bool
        Whether the classifier is the file's, which must then fit; else it is left as it is.
    conversion : Conversion, optional
        How names of another library become timm's.
    classifier : callable, optional
        Changes a file's classifier, where it is kept, from tensors under the model's names to such tensors.

    Returns
    -------
    Fitted
        With what was taken off and left over.

    Raises
    ------
    ModelError
        If a tensor is missing or surplus, or has another shape than the model's.
    """
    body, wanted = adapter(model), model.state_dict()
    fitted = fit_names(model, tensors, where, keep_classifier=keep_classifier, conversion=conversion)
    tensors = fitted.tensors if classifier is None or not keep_classifier else classifier(fitted.tensors)
    if conversion is not None:
        tensors = conversion.resampled(model, dict(tensors))
    if body.mark not in tensors:
        what = f"not weights of a timm {type(model).__name__} (it has {listed(sorted(tensors))})"
        raise ModelError(where, what, _fix(model))
    if keep_classifier:
        _check_outputs(model, tensors, where)
    else:
        tensors, wanted = (without_classifier(part, model) for part in (tensors, wanted))
    _check_shapes(model, tensors, wanted, where, resampled=body.resampled)
    try:
        tensors = _resampled(model, tensors)
    except RuntimeError:  # a position grid that cannot be resampled
        _check_shapes(model, tensors, wanted, where)
        raise
    missing = [k for k in wanted if k not in tensors and not k.endswith(COUNTED)]
    surplus = [k for k in tensors if k not in wanted]
    if missing or surplus:
        said = [f"it lacks {listed(missing)}"] * bool(missing) + [f"it has {listed(surplus)}"] * bool(surplus)
        raise ModelError(where, f"another architecture: {'; '.join(said)}", _fix(model))
    _check_shapes(model, tensors, wanted, where)
    return dataclasses.replace(fitted, tensors=dict(tensors))


def check_heads(model: Model, checkpoint: Checkpoint, *, by_name: bool) -> None:
    """Raise where what is stored beside the weights names another number of heads than the model has.

    Queries, keys and values in one matrix have the same shape whatever the number of heads, so nothing else would.

    Parameters
    ----------
    model : Model
    checkpoint : Checkpoint
    by_name : bool
        Whether the stored name of timm's model tells, which it does not where arguments of it were changed.

    Raises
    ------
    ModelError
    """
    body, named = adapter(model), checkpoint.architecture
    if body.unit != "head":
        return
    stored = {checkpoint.heads} if checkpoint.heads is not None else _heads_of(named if by_name else None)
    found = {body.units(layer) for layer in range(body.depth)}
    if stored and stored != found:
        counts = [" and ".join(map(str, sorted(n))) for n in (stored, found)]
        what = f"was trained with {counts[0]} heads a layer, the card's model has {counts[1]}"
        raise ModelError(str(checkpoint.path), what, "correct model.name, or num_heads in model.overrides")


def _heads_of(name: str | None) -> set[int]:
    """Return the numbers of heads of timm's model of a name; none where there is no such model."""
    if name is None or not timm.is_model(name):
        return set()
    with without_memory():
        model = timm.create_model(name)
    if not isinstance(model, tuple(ADAPTERS)):
        return set()
    body = adapter(model)
    return {body.units(layer) for layer in range(body.depth)} if body.unit == "head" else set()


def without_classifier(state: Tensors, model: Model) -> dict[str, torch.Tensor]:
    """Return a state dict of the model's kind without the tensors that depend on the classes."""
    classifiers = tuple(f"{name}." for name in adapter(model).classifiers())
    return {k: v for k, v in state.items() if not k.startswith(classifiers)}


def _resampled(model: Model, tensors: Tensors) -> Tensors:
    """Return tensors resampled to the model's image size, by timm's function for the family."""
    parts = adapter(model).resampled
    if not parts:
        return tensors
    tensors = {k: v.float() if any(part in k for part in parts) else v for k, v in tensors.items()}
    kind = next(kind for kind in ADAPTERS if isinstance(model, kind))
    modules = (importlib.import_module(base.__module__) for base in kind.__mro__)  # a family may derive from timm's
    found = (getattr(module, "checkpoint_filter_fn", None) for module in modules)
    resample: Filter | None = next(filter(None, found), None)
    if resample is None:
        return tensors
    lent: Tensors = {}
    if PUBLISHED_SWIN not in tensors:  # timm before 1.0.31 knows its own Swin by the classifier alone
        own = model.state_dict()
        lent = {k: own[k] for k in own.keys() - without_classifier(own, model).keys() - tensors.keys()}
    return {k: v for k, v in resample({**tensors, **lent}, model).items() if k not in lent}


def _check_outputs(model: Model, tensors: Tensors, where: str) -> None:
    """Raise where the weights' own classifier has another number of outputs than the card names classes."""
    name, classifier = next(iter(adapter(model).classifiers().items()))
    found, named = len(tensors.get(f"{name}.weight", ())), classifier.out_features
    if found and found != named:
        what = f"the classifier has {found} outputs, the card names {named} classes"
        fix = "name every class, in the order of the outputs, under model.classes"
        if (found, named) == (1, 2):
            fix = "where it is the logit of the second class, write model.output: sigmoid"
        raise ModelError(where, what, fix)


def _check_shapes(
    model: Model, tensors: Tensors, wanted: Tensors, where: str, *, resampled: tuple[str, ...] = ()
) -> None:
    """Raise where the shape of a tensor differs, but for those that are resampled."""
    differ = [
        f"{name} is {tuple(tensor.shape)}, the model's is {tuple(wanted[name].shape)}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape and not any(part in name for part in resampled)
    ]
    if differ:
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise ModelError(where, f"another architecture: {differ[0]}{more}", _fix(model))


def _fix(model: Model) -> str:
    """Return what to change when weights do not fit."""
    name = model.pretrained_cfg.get("architecture", "the model")
    return f"name weights of {name}, or the model that these weights belong to"
