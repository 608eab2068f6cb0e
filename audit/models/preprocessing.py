"""What a deployed pipeline does to an image before the model sees it, by the library's own code.

Each library's preprocessing is a geometry, which turns an image into bytes of the model's size, and a normalisation of
each channel. The geometry runs once for each image; the normalisation runs with the model (``transforms.as_input``).
Where a library resizes without rounding to bytes, the geometry gives normalised numbers, as a user's own function may.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision import transforms as tv
from torchvision.models import get_model_weights
from torchvision.transforms import functional as tvf

from audit.card.schema import ModelSpec, PreprocessSpec
from audit.data.decode import Opening
from audit.data.pixels import Geometry, Pixels, centred_square
from audit.errors import ModelError
from audit.extras import needs
from audit.models.adapters.registry import Model, adapter
from audit.models.carried import Carried
from audit.models.converters import TORCHVISION, is_foreign
from audit.models.converters.huggingface import rescaled_by, side_of
from audit.models.converters.open_clip import read_configuration
from audit.models.converters.processors import CONFIG, folder_of, open_processor, read_json
from audit.models.converters.timm_folder import is_timm_folder
from audit.models.source_digest import digest_of
from audit.records import PreprocessingInfo, PreprocessingSource

MAKES_ITS_OWN = "rendered"  # weights that are trained here, on whole images
TEST_FIELDS = {"test_input_size": "input_size", "test_crop_pct": "crop_pct"}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
ROUNDED = 1e-5  # of shares: by more, bytes are not what a processor normalises
INTEGERS = 1e-3  # how far bytes that come back as shares may be from whole numbers
Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How images become what a model sees."""

    geometry: Geometry  # from a file to pixels of the model's size
    # by which pixels between 0 and 1 are normalised, one for each channel
    mean: tuple[float, ...]
    std: tuple[float, ...]
    info: PreprocessingInfo  # what the record says of it
    carried: Carried | None = None  # what weights that are saved carry of it, where a card can name them

    def opened(self, opening: Opening) -> Preprocessing:
        """Return the same with files opened in another way; a legacy pipeline has its own."""
        if self.geometry.opening == Opening.CAREFUL:
            return self
        info = self.info.model_copy(update={"opening": str(opening)})
        return replace(self, geometry=replace(self.geometry, opening=opening), info=info)


class Preprocess:
    """A preprocessing of the user's own.

    Parameters
    ----------
    fn : callable
        From a PIL image, mode RGB, to a tensor (channels, height, width) as the model takes it. The last step of a
        ``torchvision.transforms.Compose`` may be ``Normalize``: the controls then corrupt the image before it, as they
        do with the libraries' pipelines. Else they corrupt what ``fn`` gives.

    Notes
    -----
    The record names it by the SHA-256 of its source and settings. Where these might not tell it from another (a lambda,
    a partial function, a closure, a method, an object without a ``repr`` of its own, source that cannot be read), the
    record says that the run cannot be reproduced from it alone, and no later run takes up what it has measured.

    Examples
    --------
    >>> import timm, vit_audit as va
    >>> from torchvision import transforms
    >>> module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=2)
    >>> seen = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    >>> net = va.wrap(module, ["no", "yes"], preprocess=va.Preprocess(seen))
    >>> net.preprocessing.steps
    ['Resize(size=(32, 32), interpolation=bilinear, max_size=None, antialias=True)']
    """

    def __init__(self, fn: Transform) -> None:
        if not callable(fn):
            raise ModelError("preprocess", f"a {type(fn).__name__} cannot be called", "give a function of an image")
        self.fn = fn

    @property
    def digest(self) -> str | None:
        """SHA-256 over source and settings; None where they might not tell it from another (:func:`digest_of`)."""
        return digest_of(self.fn)

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of a ``Compose`` that ends with its normalisation; else None."""
        last = self.fn.transforms[-1] if isinstance(self.fn, tv.Compose) and self.fn.transforms else None
        if not isinstance(last, tv.Normalize):
            return None
        mean, std = ([float(v) for v in torch.as_tensor(v).flatten()] for v in (last.mean, last.std))
        usual = min(mean) >= 0 and max(mean) <= 1 and min(std) > 0 and max(std) <= 1
        return (mean, std) if usual else None

    def __repr__(self) -> str:
        return f"Preprocess({_one_line(self.fn)})"


def preprocessing_of(
    spec: ModelSpec,
    model: Model,
    *,
    folder: Path | None = None,
    given: Preprocess | None = None,
) -> Preprocessing:
    """Return a model's preprocessing: the card's, the user's own, or that which its weights or library name.

    Parameters
    ----------
    spec : ModelSpec
    model : Model
        Its configuration says what size it takes.
    folder : pathlib.Path, optional
        Of a Hugging Face model.
    given : Preprocess, optional
        The user's own.

    Raises
    ------
    ModelError
        If what comes out is not of the model's size, or nothing says how to make it.
    """
    carried: Carried | None = model.pretrained_cfg.get("carried") if spec.preprocess == "deployed" else None
    if carried is None or given is not None:
        made = _made(spec, model, folder, given)
    elif carried.preprocess == "callable":
        what = "these weights were trained on images made by a function in Python, which they cannot carry"
        raise ModelError("model.preprocess", what, "give it again as va.Preprocess(fn), or state another")
    else:
        made = _made(carried.of_card(spec), model, folder, None)
        info = made.info.model_copy(update={"source": PreprocessingSource.WEIGHTS})
        return replace(made, info=info, carried=carried)
    if is_foreign(spec.name):
        return made
    how = "callable" if given is not None else "deployed" if spec.preprocess == "test" else spec.preprocess
    side = made.info.input_size[1] if spec.image_size is not None or spec.preprocess == "test" else None
    resolved = _resolved(spec, model, _shape(model)) if how == "deployed" else {}
    config = {key: resolved[key] for key in ("crop_pct", "crop_mode", "interpolation") if key in resolved}
    carried = Carried(preprocess=how, mean=list(made.mean), std=list(made.std), image_size=side, config=config)
    return replace(made, carried=carried)


def _made(spec: ModelSpec, model: Model, folder: Path | None, given: Preprocess | None) -> Preprocessing:
    shape, said = _shape(model), _normalisation(model)
    if given is not None:
        return _checked(_of_callable(given), shape)
    if spec.is_legacy:
        return _checked(_legacy(shape, said), shape)
    if isinstance(spec.preprocess, PreprocessSpec):
        return _checked(_stated(spec.preprocess, shape, said), shape)
    if spec.name == "huggingface":
        return _checked(_of_huggingface(folder, shape, said, getattr(model, "image_processor", None)), shape)
    if spec.name.startswith("open_clip/"):
        return _checked(_of_open_clip(spec, folder, shape), shape)
    if spec.name.startswith(TORCHVISION):
        return _checked(_of_torchvision(spec, shape, said), shape)
    return _checked(_of_timm(spec, model, shape), shape)


def stated_preprocessing(spec: ModelSpec, side: int, channels: int = 3) -> Preprocessing:
    """Return the preprocessing of a model that says nothing of it itself: all of it is the card's.

    Parameters
    ----------
    spec : ModelSpec
    side : int
        Of the model's images in pixels.
    channels : int
        Of these images; of one channel, the model is shown their luma.

    Raises
    ------
    ModelError
        If the card does not say how pixels are normalised, or what it states gives images of another size.
    """
    stated = spec.preprocess if isinstance(spec.preprocess, PreprocessSpec) else PreprocessSpec()
    mean, std = stated.mean or spec.mean, stated.std or spec.std
    if mean is None or std is None:
        what = "nothing in the model's file says how pixels are normalised"
        raise ModelError("model.mean", what, "give model.mean and model.std")
    shape, said = (side, side, channels), (tuple(mean), tuple(std))
    return _checked(_legacy(shape, said) if spec.is_legacy else _stated(stated, shape, said), shape)


def _legacy(shape: tuple[int, int, int], said: tuple[tuple[float, ...], tuple[float, ...]]) -> Preprocessing:
    """Return the preprocessing of versions before 0.2."""
    steps = [f"crop to a centred square, resize to {shape[0]} x {shape[1]}, bicubic"]
    info = PreprocessingInfo(source=PreprocessingSource.LEGACY, library="vit-audit", steps=steps)
    return Preprocessing(centred_square(shape[0]), *said, info)


def _shape(model: Model) -> tuple[int, int, int]:
    """Return height, width and channels of what a model takes."""
    side = adapter(model).side
    channels = model.pretrained_cfg.get("input_size", (3,))[0]
    return side, side, int(channels)


def _normalisation(model: Model) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(float(v) for v in model.pretrained_cfg[key]) for key in ("mean", "std"))
    return mean, std


def _of_timm(spec: ModelSpec, model: Model, shape: tuple[int, int, int]) -> Preprocessing:
    """Return timm's own evaluation transform of the model's configuration."""
    transform = create_transform(**_resolved(spec, model, shape), is_training=False)
    carried = spec.weights in ("pretrained", MAKES_ITS_OWN)
    source = PreprocessingSource.WEIGHTS if carried else PreprocessingSource.LIBRARY_DEFAULT
    return _of_compose(transform, shape, source, f"timm {timm.__version__}")


def _resolved(spec: ModelSpec, model: Model, shape: tuple[int, int, int]) -> dict[str, Any]:
    config = dict(model.pretrained_cfg)
    if spec.preprocess == "test":
        config |= {to: config[name] for name, to in TEST_FIELDS.items() if config.get(name) is not None}
    if spec.weights == MAKES_ITS_OWN:
        config["crop_pct"] = 1.0
    resolved: dict[str, Any] = resolve_data_config(
        {"input_size": (shape[2], shape[0], shape[1])}, pretrained_cfg=config
    )
    return resolved


def _of_torchvision(
    spec: ModelSpec, shape: tuple[int, int, int], said: tuple[tuple[float, ...], tuple[float, ...]]
) -> Preprocessing:
    """Return the transforms of torchvision's weights, those that the card names or the newest."""
    published, entry = get_model_weights(spec.name.removeprefix(TORCHVISION)), spec.weights_entry
    if entry is not None and entry not in published.__members__:
        there = ", ".join(each.name for each in published)
        raise ModelError("model.preprocess", f"{published.__name__} has no entry '{entry}'", f"it has {there}")
    weights = published[entry or "DEFAULT"]
    preset = copy.copy(weights.transforms())
    if entry is not None:
        said = tuple(spec.mean or preset.mean), tuple(spec.std or preset.std)
    preset.mean, preset.std = [0.0] * shape[2], [1.0] * shape[2]
    if preset.crop_size[0] != shape[0]:
        preset.resize_size = [round(preset.resize_size[0] * shape[0] / preset.crop_size[0])]
        preset.crop_size = [shape[0]]
    steps = [
        f"resize={preset.resize_size[0]}",
        f"center_crop={preset.crop_size[0]}",
        f"interpolation={preset.interpolation.value}",
        f"antialias={preset.antialias}",
    ]
    source = PreprocessingSource.WEIGHTS if spec.weights == "pretrained" else PreprocessingSource.LIBRARY_DEFAULT
    info = PreprocessingInfo(
        source=source if entry is None else PreprocessingSource.CARD,
        library=f"torchvision {torchvision.__version__} ({weights})",
        steps=steps,
    )
    return Preprocessing(_bytes_of(preset, shape), *said, info)


def _of_huggingface(
    folder: Path | None,
    shape: tuple[int, int, int],
    said: tuple[tuple[float, ...], tuple[float, ...]],
    default: Any = None,
) -> Preprocessing:
    """Return the image processor of a Hugging Face folder, without rescaling and normalisation.

    ``default`` is the library's for a module that was given in memory, beside which nothing lies.
    """
    config = read_json(folder_of(folder) / CONFIG) if folder is not None else {}
    if is_timm_folder(config):
        return _of_timm_folder(config, shape)
    processor, carried = (default, False) if default is not None and folder is None else open_processor(folder)
    import transformers

    settings = processor.to_dict()
    sizes = _sizes_for(settings, shape[0])
    library = f"transformers {transformers.__version__} ({type(processor).__name__}, {_backend_of(processor)} backend)"

    mean, std = (np.asarray(v, dtype=np.float32) for v in said)
    processed = _Processed(processor, sizes, rescaled_by(settings), mean, std)
    geometry = Geometry(processed.as_bytes, shape, Opening.AS_STORED)
    if _rounds(processed.as_bytes, processed.shares, library):
        geometry = Geometry(processed.normalised, shape, Opening.AS_STORED, np.float32)
    shown = {k: v for k, v in {**settings, **sizes}.items() if k in SHOWN_SETTINGS and v is not None}
    info = PreprocessingInfo(
        source=PreprocessingSource.WEIGHTS if carried else PreprocessingSource.LIBRARY_DEFAULT,
        library=library,
        steps=[f"{name}={_plain(name, value)}" for name, value in sorted(shown.items())],
    )
    return Preprocessing(geometry, *said, info)


@dataclass(frozen=True)
class _Processed:
    """What a Hugging Face image processor makes of an image."""

    processor: Any
    sizes: Mapping[str, Any]  # that it is called with
    rescaled: float  # what it multiplies grey levels by, as shares of a byte's range
    # by which shares are normalised, one for each channel
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def as_bytes(self, image: Image.Image) -> Pixels:
        """Return grey levels."""
        made = self.processor(images=image, **self.sizes, do_rescale=False, do_normalize=False, return_tensors="pt")
        return _as_bytes(made["pixel_values"][0], type(self.processor).__name__)

    def shares(self, image: Image.Image) -> Pixels:
        """Return shares, before they are normalised."""
        made = self.processor(images=image, **self.sizes, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        pixels: Pixels = (made.float() / self.rescaled).permute(1, 2, 0).contiguous().numpy()
        return pixels

    def normalised(self, image: Image.Image) -> Pixels:
        """Return what the model takes."""
        made: Any = (self.shares(image) - self.mean) / self.std
        pixels: Pixels = made
        return pixels


def _backend_of(processor: Any) -> str:
    return getattr(processor, "backend", None) or ("torchvision" if "Fast" in type(processor).__name__ else "pil")


def _rounds(of_bytes: Callable[[Image.Image], Pixels], shares: Callable[[Image.Image], Pixels], library: str) -> bool:
    """Tell whether bytes are not what a processor normalises, as of one that rescales before it resizes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
    wanted = _fitted(shares, noise, library)
    try:
        found = _fitted(of_bytes, noise, library)
    except ModelError:  # no bytes come out of it
        return True
    return float(np.abs(found / np.float32(255) - wanted).max()) > ROUNDED


def _of_open_clip(spec: ModelSpec, folder: Path | None, shape: tuple[int, int, int]) -> Preprocessing:
    """Return open_clip's own evaluation transform, of the settings beside the weights or of its defaults."""
    open_clip = needs("open_clip", f"model.name: {spec.name}", error=ModelError)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if folder is None:
        raise ModelError(
            "model.weights", f"name: {spec.name} needs a folder", "name one that holds open_clip_config.json"
        )
    stated = read_configuration(spec.name.removeprefix("open_clip/"), folder).get("preprocess_cfg") or {}
    known = {f.name for f in fields(PreprocessCfg)}
    settings = {key: value for key, value in stated.items() if key in known and value is not None}
    try:
        transform = image_transform_v2(PreprocessCfg(**{**settings, "size": shape[0]}), is_train=False)
    except Exception as error:  # whatever odd settings make of a transform
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            "preprocess_cfg", f"gives no transform ({said})", "restore it, or state model.preprocess"
        ) from None
    source = PreprocessingSource.WEIGHTS if stated else PreprocessingSource.LIBRARY_DEFAULT
    return _of_compose(transform, shape, source, f"open_clip {open_clip.__version__}")


def _of_timm_folder(config: Mapping[str, Any], shape: tuple[int, int, int]) -> Preprocessing:
    """Return timm's evaluation transform of the configuration that a folder holds."""
    carried = config.get("pretrained_cfg") or {}
    stated = {**timm_config(str(config["architecture"])), **carried}
    resolved = resolve_data_config({"input_size": (shape[2], shape[0], shape[1])}, pretrained_cfg=stated)
    transform = create_transform(**resolved, is_training=False)
    source = PreprocessingSource.WEIGHTS if carried else PreprocessingSource.LIBRARY_DEFAULT
    return _of_compose(transform, shape, source, f"timm {timm.__version__}")


def timm_config(name: str) -> dict[str, Any]:
    """Return timm's own configuration of a model's pretrained weights; {} where there is none."""
    found = timm.get_pretrained_cfg(name)
    return {} if found is None else found.to_dict()


def _sizes_for(settings: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Return sizes to call a processor with where the model takes another side than it makes; else nothing."""
    made = side_of(settings)
    if made in (None, side):
        return {}
    size, crops = settings.get("size") or {}, settings.get("do_center_crop")
    square = {"height": side, "width": side}
    if "shortest_edge" not in size:
        return {"size": square, **({"crop_size": square} if crops else {})}
    edge = round(size["shortest_edge"] * side / made) if made else side
    return {"size": {"shortest_edge": edge}, **({"crop_size": square} if crops else {})}


SHOWN_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_pad", "pad_size",
    "do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize",
)  # fmt: skip


def _plain(name: str, value: Any) -> str:
    """Return a setting in a few letters: {'height': 224, 'width': 224} as 224x224, and Pillow's number as its name."""
    if name == "resample" and isinstance(value, int):
        value = Image.Resampling(value)
    if isinstance(value, dict):
        sizes = {k: v for k, v in value.items() if v is not None}
        if set(sizes) == {"height", "width"}:
            return f"{sizes['height']}x{sizes['width']}"
        return ", ".join(f"{k} {v}" for k, v in sizes.items())
    return str(getattr(value, "name", value)).lower()


def _stated(
    spec: PreprocessSpec, shape: tuple[int, int, int], said: tuple[tuple[float, ...], tuple[float, ...]]
) -> Preprocessing:
    """Return the preprocessing that a card states."""
    crop = spec.crop or shape[0]
    resize, how = spec.resize or crop, tvf.InterpolationMode(spec.interpolation)
    if resize < crop and spec.mode == "center":
        what = f"resize {resize} is less than crop {crop}: black borders would be added"
        raise ModelError("model.preprocess", what, "give a larger resize, or mode: border")
    steps: list[Any]
    if spec.mode == "squash":
        steps = [tv.Resize((resize, resize), interpolation=how)]
    elif spec.mode == "border":
        steps = [ResizeKeepRatio((resize, resize), longest=1.0, interpolation=spec.interpolation)]
    else:
        steps = [tv.Resize(resize, interpolation=how)]
    steps += [CenterCropOrPad((crop, crop))] if spec.mode == "border" else [tv.CenterCrop(crop)]
    mean, std = (tuple(v) if v is not None else d for v, d in zip((spec.mean, spec.std), said, strict=True))
    compose = tv.Compose([*steps, tv.ToTensor(), tv.Normalize(mean, std)])
    return _of_compose(compose, shape, PreprocessingSource.CARD, f"torchvision {torchvision.__version__}")


def _of_callable(given: Preprocess) -> Preprocessing:
    """Return a user's own preprocessing; its size is found on a blank image."""
    try:
        tried = given.fn(Image.new("RGB", (64, 48)))
    except Exception as error:  # whatever somebody's function raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            "preprocess", f"fails on a blank image, 64 x 48 ({said})", "give a function of an image"
        ) from None
    if not isinstance(tried, torch.Tensor) or tried.ndim != 3 or not tried.is_floating_point():
        got = (
            f"{tuple(tried.shape)} of {tried.dtype}" if isinstance(tried, torch.Tensor) else f"a {type(tried).__name__}"
        )
        raise ModelError("preprocess", f"gives {got}", "return a float tensor (channels, height, width)")
    shape = (int(tried.shape[1]), int(tried.shape[2]), int(tried.shape[0]))
    library = f"torchvision {torchvision.__version__}" if isinstance(given.fn, tv.Compose) else "given in Python"
    if isinstance(given.fn, tv.Compose) and given.normalisation is not None:
        made = _of_compose(given.fn, shape, PreprocessingSource.CALLABLE, library)
        return Preprocessing(made.geometry, made.mean, made.std, made.info.model_copy(update={"sha256": given.digest}))
    info = PreprocessingInfo(
        source=PreprocessingSource.CALLABLE, library=library, steps=[_one_line(given.fn)], sha256=given.digest
    )
    geometry = Geometry(_AsGiven(given.fn), shape, Opening.AS_STORED, np.float32)
    return Preprocessing(geometry, (0.0,) * shape[2], (1.0,) * shape[2], info)


@dataclass(frozen=True)
class _AsGiven:
    """What a user's own function makes of an image."""

    fn: Transform

    def __call__(self, image: Image.Image) -> Pixels:
        pixels: Pixels = self.fn(image).permute(1, 2, 0).float().numpy()
        return pixels


def _of_compose(
    transform: tv.Compose, shape: tuple[int, int, int], source: PreprocessingSource, library: str
) -> Preprocessing:
    """Part a transform that ends with its normalisation into geometry and normalisation."""
    *steps, last = transform.transforms
    mean, std = (tuple(float(v) for v in torch.as_tensor(v).flatten()) for v in (last.mean, last.std))
    named = [_one_line(step) for step in steps if not isinstance(step, tv.ToTensor) and "ToTensor" not in repr(step)]
    info = PreprocessingInfo(source=source, library=library, steps=named)
    return Preprocessing(_bytes_of(tv.Compose(steps), shape), mean, std, info)


def _bytes_of(transform: Transform, shape: tuple[int, int, int]) -> Geometry:
    """Return the geometry of a transform that gives shares from 0 to 1, each a byte by 255."""
    return Geometry(_OfShares(transform, shape[2]), shape, Opening.AS_STORED)


@dataclass(frozen=True)
class _OfShares:
    """Bytes of a transform that gives shares from 0 to 1."""

    transform: Transform
    channels: int

    def __call__(self, image: Image.Image) -> Pixels:
        seen = image.convert("L") if self.channels == 1 else image
        return _as_bytes(self.transform(seen) * 255, "the transform")


def _as_bytes(made: torch.Tensor, what: str) -> Pixels:
    """Return whole numbers (channels, height, width) as bytes (height, width, channels)."""
    if made.is_floating_point():
        whole = made.round()
        if float((made - whole).abs().max()) > INTEGERS or float(whole.min()) < 0 or float(whole.max()) > 255:
            raise ModelError("model.preprocess", f"{what} gives no bytes before it normalises", "use va.Preprocess")
        made = whole
    return made.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _one_line(step: object) -> str:
    """Return how a step is named in a record: the same in every process."""
    return step.__name__ if inspect.isfunction(step) else " ".join(ADDRESS.sub("", repr(step)).split())


def _fitted(fit: Callable[[Image.Image], Pixels], image: Image.Image, library: str) -> Pixels:
    """Return what a library makes of an image, or say that this version of it does not take the settings."""
    try:
        return fit(image)
    except (KeyError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        what = f"{library} does not take its own settings ({said})"
        raise ModelError("model.preprocess", what, "take a later version of it, or state model.preprocess") from error


def _checked(made: Preprocessing, shape: tuple[int, int, int]) -> Preprocessing:
    """Return a preprocessing that gives what the model takes, with that written down."""
    tried = _fitted(made.geometry.fit, Image.new("RGB", (shape[1] + 17, shape[0] + 5)), made.info.library)
    seen_as_luma = shape[2] == 1 and tried.shape == (*shape[:2], 3)
    if tried.shape != shape and not seen_as_luma:
        given, taken = (f"{h} x {w} pixels, {c} channels" for h, w, c in (tried.shape, shape))
        what = f"gives {given}; the model takes {taken}"
        raise ModelError("model.preprocess", what, "set model.image_size, or state model.preprocess with crop")
    sizes: Sequence[int] = (len(made.mean), len(made.std))
    if any(n not in (1, shape[2]) for n in sizes):
        what = f"mean and std have {sizes[0]} and {sizes[1]} numbers for {shape[2]} channels"
        raise ModelError("model.preprocess", what, "give one number for each channel")
    info = made.info.model_copy(
        update={
            "input_size": [shape[2], shape[0], shape[1]],
            "mean": list(made.mean),
            "std": list(made.std),
            "opening": str(made.geometry.opening),
        }
    )
    return replace(made, info=info)
