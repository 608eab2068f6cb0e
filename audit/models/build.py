"""Models from a card: timm's by name, with pretrained, given or random weights, and others translated into these."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.card.load import resolve
from audit.card.schema import Card, ModelSpec
from audit.errors import ModelError
from audit.models.adapters.base import Adapter
from audit.models.adapters.channels import SLICES_FIELD, Channels
from audit.models.adapters.registry import ADAPTERS, Model, adapter
from audit.models.checkpoint import hash_state, read_weights
from audit.models.converters import HUGGING_FACE, TORCHVISION, Translation, foreign_weights, is_foreign, read_foreign
from audit.units import Unit

SUPPORTED = (*(name for made in ADAPTERS.values() for name in made.named), f"{TORCHVISION}vit_*", HUGGING_FACE)
COUNTED = "num_batches_tracked"  # by batch norms of late versions of torch; nothing is computed from it
Filter = Callable[[Mapping[str, torch.Tensor], Model], dict[str, torch.Tensor]]
FAULTS_SHOWN = 3
RESERVED = {  # arguments of timm's that load, fetch or leave out, or that the card says elsewhere
    "checkpoint_path", "cache_dir", "in_chans", "num_classes", "img_size", "features_only", "out_indices", "scriptable",
    "exportable", "no_jit",
}  # fmt: skip
BLOCKS = {"depth", "depths", "layers"}  # arguments that count blocks, each of which is made one by one
MOST_BLOCKS, LARGEST = 500, 2**17  # no network has so many, or is so wide


@dataclass(frozen=True)
class Backbone:
    """A recipe for fresh copies of one initialisation: same weights each time, any number of classes.

    Parameters
    ----------
    spec : ModelSpec
        The card's model.
    weights : pathlib.Path, optional
        The weights file (of Hugging Face: the folder), found; None for ``pretrained`` and ``none``.
    """

    spec: ModelSpec
    weights: Path | None

    def build(self, classes: int, *, seed: int = 0) -> Model:
        """Return a model in evaluation mode whose body is this initialisation.

        Parameters
        ----------
        classes : int
            Outputs of the classifier. Where the weights hold another number, the classifier is new.
        seed : int
            Of whatever is drawn: the classifier, or everything where ``weights: none``.

        Raises
        ------
        ModelError
            If timm does not know the model, this tool cannot patch it, or the weights do not fit.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create_architecture(
                self.spec,
                classes,
                pretrained=self.weights is None and self.spec.weights == "pretrained",
                weights=self.weights,
            )
        if self.spec.weights != "none" and (self.weights is not None or is_foreign(self.spec.name)):
            self._load(model, keep_classifier=False)
        return model.eval().requires_grad_(False)  # training asks for gradients itself

    def build_as_is(self, classes: int) -> Model:
        """Return the user's own model, classifier included; every tensor must fit."""
        if self.weights is None:
            raise ModelError(
                "model.weights", f"'{self.spec.weights}' with training: none", "name the weights file to audit"
            )
        model = create_architecture(self.spec, classes, pretrained=False, weights=self.weights)
        self._load(model, keep_classifier=True)
        return model.eval().requires_grad_(False)  # training asks for gradients itself

    def build_untrained(self, classes: int, *, seed: int = 0) -> Model:
        """Return a model of this architecture with random weights: it knows nothing, and is no quieter for that."""
        model = Backbone(self.spec.model_copy(update={"weights": "none"}), self.weights).build(classes, seed=seed)
        body = adapter(model)
        for layer in range(body.depth):
            body.reset_layer_scale_(layer)
        return model

    def _load(self, model: Model, *, keep_classifier: bool) -> None:
        name, where = self.spec.name, self.weights or Path(self.spec.weights)
        if is_foreign(name):
            state: Mapping[str, torch.Tensor] = read_foreign(name, self.weights).renamed(
                foreign_weights(name, self.weights)
            )
        else:
            state = read_weights(where)
        load_into(model, state, where, keep_classifier=keep_classifier)

    def body_hash(self) -> str:
        """SHA-256 of the initial weights, classifier aside."""
        model = self.build(2)
        return hash_state(without_classifier(model.state_dict(), model))


def check_model(card: Card, *, card_path: Path, data_root: Path | None) -> None:
    """Raise where a card's model cannot be audited; it is made without memory for weights, and none are fetched.

    Raises
    ------
    ModelError
        If timm does not know the model, or this tool cannot patch it.
    DataError
        If a file or folder of weights that the card names is not there.
    """
    spec = card.model
    named = spec.weights not in ("pretrained", "rendered", "none")
    weights = resolve(spec.weights, card_path=card_path, data_root=data_root) if named else None
    with torch.device("meta"):
        model = create_architecture(spec, 2, pretrained=False, weights=weights).eval()
        _try_pass(model)


def _try_pass(model: Model) -> None:
    """Raise where an image of the model's size does not pass through it; nothing is computed."""
    side = adapter(model).side
    try:
        logits = model(torch.empty(1, 3, side, side, device="meta"))
    except NotImplementedError:  # an operation that is not known without numbers
        return
    except Exception as error:  # whatever an architecture of odd arguments raises
        what = f"an image of {side} x {side} pixels does not pass through it ({type(error).__name__})"
        raise ModelError("model", what, "correct image_size or overrides") from error
    if logits.shape != (1, 2):
        raise ModelError("model.overrides", "the model gives no logits, one a class", "remove what takes the pool away")


def create_architecture(spec: ModelSpec, classes: int, *, pretrained: bool, weights: Path | None = None) -> Model:
    """Create a model by name and refuse what cannot be patched; a foreign one's shape stands beside its ``weights``."""
    if spec.channel_slices is not None and unit_of(spec.name) == "head":
        what = f"{spec.name} has attention heads, no slices of channels"
        raise ModelError("model.channel_slices", what, "remove it")
    if is_foreign(spec.name):
        return _translated(spec, read_foreign(spec.name, weights), classes)
    options = dict(spec.overrides)
    reserved = sorted(key for key in options if key in RESERVED or key.startswith("pretrained"))
    if reserved:
        what = f"'{reserved[0]}' is no part of an architecture, or has a field of its own"
        raise ModelError("model.overrides", what, "remove it")
    _check_sizes(options, "model.overrides")
    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models(), n=3)
        raise ModelError(
            "model.name", f"timm has no model '{spec.name}'", f"did you mean {', '.join(near) or SUPPORTED[0]}"
        )
    made = family_of(spec.name)
    if made is None:
        raise unsupported(spec.name, "it is of no known family")
    if spec.image_size is not None and not issubclass(made, Channels):  # convolutions take any size
        options["img_size"] = spec.image_size
    try:
        model = timm.create_model(spec.name, pretrained=pretrained, num_classes=classes, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise _refused(spec.name, options, error) from error
        raise ModelError(
            "model.weights",
            f"pretrained weights of {spec.name} could not be fetched ({type(error).__name__})",
            "connect to the network once, or name a weights FILE",
        ) from error
    except Exception as error:  # whatever odd arguments make of an architecture
        raise _refused(spec.name, options, error) from error
    if issubclass(made, Channels):
        model.to(memory_format=torch.channels_last)  # on a processor several times as fast to train
    _adapt(model, spec)
    reason = why_not_patchable(model)
    if SLICES_FIELD in reason:
        raise ModelError(SLICES_FIELD, f"{spec.name}: {reason.partition('; ')[0]}", "take a divisor of that")
    if reason:
        raise unsupported(spec.name, reason)
    _check_side(model, spec)
    return model


def _check_sizes(options: Mapping[str, object], where: str) -> None:
    """Refuse what would be built for hours, or fill the memory before a weight is read."""
    for name, value in options.items():
        numbers = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int | float)]
        most = MOST_BLOCKS if name in BLOCKS else LARGEST
        if sum(map(abs, numbers)) > most:
            raise ModelError(where, f"{name} is {value}: no network is so large", f"write {most} or less")


def _refused(name: str, options: Mapping[str, object], error: Exception) -> ModelError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return ModelError("model", f"timm refuses {name} with {options} ({said})", "correct image_size or overrides")


def family_of(name: str) -> type[Adapter] | None:
    """Return which family a timm model is of, by the module that makes it, or None if of none that is known."""
    module = inspect.getmodule(timm.model_entrypoint(name))
    made = {inspect.getmodule(kind): found for kind, found in ADAPTERS.items()}
    return ADAPTERS[VisionTransformer] if name.startswith("deit") else made.get(module)


def unit_of(name: str) -> Unit:
    """Return what is patched of a model that a card names; the name is known to be supported."""
    made = None if is_foreign(name) else family_of(name)
    return "head" if made is None else made.unit


def _translated(spec: ModelSpec, translation: Translation, classes: int) -> Model:
    """Create a model of another library."""
    if spec.overrides:
        raise ModelError("model.overrides", f"{spec.name} takes none", "remove them; its own files say what it is")
    _check_sizes({**translation.options, "image_size": translation.image_size}, "model.weights")
    try:
        model = translation.create(classes, spec.image_size)
    except (TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        raise ModelError("model", f"timm refuses {spec.name} as it is described ({error})", "correct it") from error
    _adapt(model, spec)
    if any(model.pretrained_cfg.get(k) is None for k in ("mean", "std")):
        what = "the folder has no preprocessor_config.json that says how pixels were shifted and scaled"
        raise ModelError("model.mean", what, "give model.mean and model.std")
    _check_side(model, spec)
    return model


def _adapt(model: Model, spec: ModelSpec) -> None:
    """Shift and scale pixels, and part the channels of convolutional networks, as the card says, where it does."""
    given: dict[str, tuple[float, ...]] = {}
    given |= {k: tuple(v) for k, v in (("mean", spec.mean), ("std", spec.std)) if v is not None}
    if spec.image_size is not None:
        given["input_size"] = (3, spec.image_size, spec.image_size)
    model.pretrained_cfg = {**model.pretrained_cfg, **given}
    if spec.channel_slices is not None:
        model.channel_slices = spec.channel_slices


def _check_side(model: Model, spec: ModelSpec) -> None:
    fault = adapter(model).side_fault()
    if fault:
        what, _, fix = fault.partition("; ")
        raise ModelError("model.image_size", f"{what} of {spec.name}", fix)


def unsupported(name: str, reason: str) -> ModelError:
    """Refuse a model by name, with the list of what is supported."""
    return ModelError("model.name", f"'{name}' is not supported: {reason}", f"supported: {', '.join(SUPPORTED)}")


def why_not_patchable(model: nn.Module) -> str:
    """Return why the parts of ``model`` cannot be told apart where they write, or "" if they can."""
    if not isinstance(model, tuple(ADAPTERS)):
        return f"it is a {type(model).__name__}"
    return adapter(model).fault()


def load_into(model: Model, state: Mapping[str, torch.Tensor], path: Path, *, keep_classifier: bool) -> None:
    """Load the tensors of a file, resampling positions; name what does not fit."""
    body, wanted = adapter(model), model.state_dict()
    if body.mark not in state:
        found = ", ".join(sorted(state)[:FAULTS_SHOWN])
        raise ModelError(
            str(path), f"not weights of a timm {type(model).__name__} (it has {found} ...)", mend_of(model)
        )
    if keep_classifier:
        check_outputs(state, model, path)
    else:
        state, wanted = (without_classifier(part, model) for part in (state, wanted))
    check_shapes(state, wanted, path, model, free=body.resampled)
    try:
        state = _fitted(state, model)
    except RuntimeError:  # a position grid that cannot be resampled
        check_shapes(state, wanted, path, model)
        raise
    missing = [k for k in wanted if k not in state and not k.endswith(COUNTED)]
    surplus = [k for k in state if k not in wanted]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which the model lacks"
        more = len(missing) + len(surplus) - 1
        raise ModelError(str(path), f"another architecture: it {what} (and {more} more)", mend_of(model))
    check_shapes(state, wanted, path, model)
    model.load_state_dict(state, strict=False)


def _fitted(state: Mapping[str, torch.Tensor], model: Model) -> Mapping[str, torch.Tensor]:
    """Return a checkpoint resampled to the model's image size, by timm's function for the family."""
    if not adapter(model).resampled:
        return state
    kind = next(kind for kind in ADAPTERS if isinstance(model, kind))
    fit: Filter = importlib.import_module(kind.__module__).checkpoint_filter_fn
    return fit(state, model)


def without_classifier(state: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """Return a state dict of the model's kind without the tensors that depend on the classes."""
    classifiers = tuple(f"{name}." for name in adapter(model).classifiers())
    return {k: v for k, v in state.items() if not k.startswith(classifiers)}


def check_outputs(state: Mapping[str, torch.Tensor], model: Model, path: Path) -> None:
    """Raise where the weights' own classifier has another number of outputs than the card names classes."""
    name, classifier = next(iter(adapter(model).classifiers().items()))
    found, named = len(state.get(f"{name}.weight", ())), classifier.out_features
    if found and found != named:
        raise ModelError(
            str(path),
            f"the classifier has {found} outputs, the card names {named} classes",
            "name every class, in the order of the outputs, under model.classes",
        )


def check_shapes(
    state: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    path: Path,
    model: Model,
    *,
    free: tuple[str, ...] = (),
) -> None:
    """Raise for the first tensor whose shape differs, but for those ``free`` ones that are resampled."""
    for name, tensor in state.items():
        if name in own and tensor.shape != own[name].shape and not any(part in name for part in free):
            shapes = f"{tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}"
            raise ModelError(str(path), f"another architecture: {name} is {shapes}", mend_of(model))


def mend_of(model: Model) -> str:
    """Return what to change when weights do not fit."""
    name = model.pretrained_cfg.get("architecture", "the model")
    return f"name weights of {name}, or the model that these weights belong to"


def with_class_names(card: Card, *, card_path: Path, data_root: Path | None, folder: Path | None = None) -> Card:
    """Return the card with the class names that a Hugging Face folder gives, where it names none itself.

    Parameters
    ----------
    card : Card
    card_path, data_root : pathlib.Path
        Where the folder is looked for.
    folder : pathlib.Path, optional
        The folder, where it is known.

    Raises
    ------
    ModelError
        If neither does, and the model is to be audited as it is.
    """
    spec = card.model
    if card.training != "none" or spec.classes is not None:
        return card
    folder = folder or resolve(spec.weights, card_path=card_path, data_root=data_root)
    classes = read_foreign(spec.name, folder).classes
    if classes is None:
        raise ModelError(str(folder / "config.json"), "does not name the classes", "name them under model.classes")
    return card.model_copy(update={"model": spec.model_copy(update={"classes": classes})})
