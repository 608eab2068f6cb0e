"""Stage: everything that an audit will use, opened and checked before anything is trained, patched or written."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
import torch

import audit.batching
import audit.data
import audit.evidence
import audit.models
import audit.models.preprocessing
import audit.patching
import audit.pipeline
import audit.work
from audit import __version__
from audit.card.load import resolve, with_classes
from audit.card.read_table import read_table
from audit.card.schema import PREDICTIONS, Card, ModelSpec
from audit.controls.added import added_controls, versions_of_added
from audit.controls.control_images import check_control_set
from audit.controls.verdict import MeasuredControl
from audit.data.assemble import read_samples
from audit.data.pixels import Cache, Geometry, Images, ImagesHeld, ImagesOnDemand, fits, keep, load_pixels, with_cache
from audit.data.samples import Samples
from audit.data.sources import opening_of
from audit.data.summary import audited_outcomes
from audit.errors import DataError, InputError, UnfinishedError
from audit.models.adapters.registry import adapter
from audit.models.architecture import unit_of
from audit.models.black_box import BlackBox, read_predictions
from audit.models.build import Backbone, check_model, with_class_names
from audit.models.checkpoint import hash_state
from audit.models.device import CPU, Compute, idle_cores, open_device, open_precision, seen_alone
from audit.models.onnx_file import OnnxModel
from audit.models.preflight import (
    NOT_FILES,
    PreflightReport,
    preflight_controls,
    preflight_model,
    spec_of_controls,
)
from audit.models.preprocessing import Preprocessing
from audit.models.readout import SOFTMAX, Readout, readout_of
from audit.models.rendered_base import rendered_base
from audit.pipeline.check_served import compare_box_served, compare_served
from audit.pipeline.context import BlackBoxRun, RunContext
from audit.pipeline.train_models import ARCHITECTURE, training_jobs
from audit.progress import Step
from audit.records import PreprocessingInfo
from audit.store import WORK, check_cache, now, open_cache, question_hash, run_folder, source_hash
from audit.units import Unit
from audit.work.executors import Executor
from audit.work.pool import Workers


@dataclass(frozen=True)
class Inputs:
    """A card with its data and its model, opened."""

    card: Card  # with the class names that the model's own files give
    content: bytes  # of the card's file, as it was read
    card_path: Path  # the card's file; relative paths in it start at its folder
    data_root: Path | None  # where the data lie, where not there
    samples: Samples
    backbone: Backbone | None = None  # the model, where it was given in Python
    box: BlackBox | None = None  # the model, where its inside is not given
    # a finished run whose models are measured again, whatever became of the card's weights
    finished: Path | None = None
    # what is done to images before the model sees them; None of a finished run, whose models say it, and of
    # predictions
    preprocessing: Preprocessing | None = None
    opened: PreflightReport | None = None  # what was opened of the card's weights
    readout: Readout = SOFTMAX  # how the audited model is read
    # what only a run can open, since it fetches, trains or draws it: what the card names, by its field
    not_opened: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        """What of the model is patched."""
        if self.backbone is not None:
            return self.backbone.unit
        name, weights = self.card.model.name, self.card.model.weights
        if self.finished is not None:
            return unit_of(name, self.finished / ARCHITECTURE)
        if weights in NOT_FILES:
            return unit_of(name)
        return unit_of(name, resolve(weights, card_path=self.card_path, data_root=self.data_root))


@dataclass(frozen=True)
class Options:
    """How an audit is run; none of it changes what is asked."""

    command: str  # what repeats the run, for the record
    out: Path  # folder that holds runs, each in a folder of its own that is named by card, date and hash
    run: Path | None = None  # the run's own folder, where it is to have another name
    report: bool = True  # whether HTML, PDF and tables are made
    # how many processes train and patch; as many as torch has threads where not given, and one on an accelerator
    workers: int | None = None
    # where pieces of sweeps are kept until they are put together; in the run's folder where not given
    work: Path | None = None
    device: str = CPU  # where models are trained, asked and patched
    precision: str = "float32"  # of training, and of Design A on the discovery split
    # which accelerators of that kind, where they are named one by one; one process works on each
    devices: tuple[int, ...] = ()
    # folder outside any run directory where decoded images are kept; nowhere where not given
    cache_dir: Path | None = None
    # whether images that fit into memory are decoded at once; of some of them, when they are asked for
    decode_all: bool = True
    executor: Executor | None = None  # has tasks done on other machines; none where not given
    # what is kept for whoever goes on with the run, which is then laid out only; it is done here where not given
    again: Mapping[str, object] | None = None


def open_inputs(
    card: Card,
    content: bytes,
    *,
    card_path: Path,
    data_root: Path | None,
    step: Step,
    samples: Samples | None = None,
    backbone: Backbone | None = None,
    box: BlackBox | None = None,
    finished: Path | None = None,
    readout: Readout | None = None,
    unread_before: frozenset[str] | None = None,
) -> Inputs:
    """Open and check a card's model and data; ``samples``, ``backbone`` and ``box`` are what was given in Python.

    ``readout`` is that of the models of a ``finished`` run, and ``unread_before`` the images that it could not read.

    Raises
    ------
    InputError
        Whatever is wrong with either.
    """
    if card.model.is_black_box:
        box = box or open_black_box(card, card_path=card_path, data_root=data_root)
        card = with_classes(card, box.classes)
    elif backbone is None:
        kept = None if finished is None else finished / ARCHITECTURE
        card = with_class_names(card, card_path=card_path, data_root=data_root, folder=kept)
        if finished is None:
            check_model(card, card_path=card_path, data_root=data_root)  # before every image is opened
    if samples is None and card.data.reader == "frame":
        fix = "give the same data again, in Python: vit_audit.plan(card, data=...) or result.reproduce(..., data=...)"
        raise DataError(str(card_path), "its images were given in Python, not as files", fix)
    if samples is None:
        tick = step("data: opening every image" if card.model.sees_images else "data: reading the table")
        samples = read_samples(
            card,
            card_path=card_path,
            data_root=data_root,
            progress=lambda done: tick(done, 0),
            unread_before=unread_before,
        )
    if card.model.served is not None and finished is None:
        form = read_table(resolve(card.model.served, card_path=card_path, data_root=data_root)).form
        samples = replace(samples, tables=(*samples.tables, form))
    audited_outcomes(card, samples.labels)  # a wrong name shows before anything is trained
    seen, opened, not_opened = None, None, {}
    if box is not None:
        with still_there(samples):
            samples = box.check(samples)
        seen, readout = box.preprocessing, box.readout
    elif backbone is None and finished is None:
        with still_there(samples):
            opened = preflight_model(card, card_path=card_path, data_root=data_root, samples=samples)
        seen, readout = opened.preprocessing, opened.readout
    elif backbone is not None:
        seen = backbone.preprocessing(backbone.build(2)).opened(opening_of(card))
        if readout is None:
            readout = readout_of(backbone.build_as_is(len(samples.labels)))
    if box is None and finished is None:
        training_jobs(card, samples)  # what is wrong with the training sample shows
        not_opened = _check_controls(card, samples, opened, card_path=card_path, data_root=data_root, step=step)
        check_cache()
    return Inputs(
        card=card,
        content=content,
        card_path=card_path,
        data_root=data_root,
        samples=samples,
        backbone=backbone,
        box=box,
        finished=finished,
        preprocessing=seen,
        opened=opened,
        readout=readout or SOFTMAX,
        not_opened=not_opened,
    )


def _check_controls(
    card: Card,
    samples: Samples,
    opened: PreflightReport | None,
    *,
    card_path: Path,
    data_root: Path | None,
    step: Step,
) -> dict[str, str]:
    """Open what the colour and blur controls use; return what of all that a run uses only the run can open."""
    if opened is not None:
        not_opened = dict(opened.not_opened)
    else:
        closed = preflight_controls(card, len(samples.labels), card_path=card_path, data_root=data_root) is None
        not_opened = {"controls.weights": card.controls.weights} if closed and card.controls.weights else {}
    if card.controls.card not in ("rendered", "same"):
        step("controls: opening their images")
    if not check_control_set(card, samples, card_path=card_path, data_root=data_root):
        not_opened["controls.card"] = card.controls.card
    return not_opened


def prepare(inputs: Inputs, options: Options, step: Step) -> RunContext:
    """Decode the images and find the weights to start from and the run directory; nothing is written yet."""
    card, samples = inputs.card, inputs.samples
    if inputs.finished is None:
        added_controls()  # one that cannot be run shows before anything is trained
    compute = Compute(open_device(options.device), open_precision(options.precision, options.device))
    cache = open_cache()
    backbone = inputs.backbone or _backbone(inputs, cache, step, compute)
    own = card.training == "none" and inputs.finished is None
    model = backbone.build_as_is(len(samples.labels)) if own else backbone.build(len(samples.labels))
    preprocessing = backbone.preprocessing(model, weights=card.model.weights).opened(opening_of(card))
    preprocessing = _kept(preprocessing, options)
    kept_in_memory = card.data.cache if options.decode_all else "none"
    pixels = _decoded(samples, preprocessing.geometry, kept_in_memory, step, compute)
    served = None
    if own:
        served = compare_served(
            card,
            samples,
            model,
            preprocessing,
            card_path=inputs.card_path,
            data_root=inputs.data_root,
            device=compute.device,
        )
    weights = hash_state(model.state_dict()) if own else backbone.body_hash()
    key = question_key(inputs, options, weights, preprocessing.info, served)
    run = options.run or run_folder(options.out, card.name, key)
    return RunContext(
        card=card,
        card_path=inputs.card_path,
        card_content=inputs.content,
        data_root=inputs.data_root,
        run=run,
        question=key,
        weights=backbone.body_hash(),
        cache=cache,
        samples=samples,
        unit=adapter(model).unit,
        pixels=pixels,
        preprocessing=preprocessing,
        served=served,
        work=options.work or run / WORK,
        workers=_workers(options, compute),
        backbone=backbone,
        control_backbone=_control_backbone(inputs, cache, step, compute) or backbone,
        step=step,
        command=options.command,
        started=now().isoformat(),
        compute=compute,
        readout=inputs.readout,
    )


def _workers(options: Options, compute: Compute) -> Workers:
    """Return who does the tasks; where nobody says, as many processes as torch would use threads."""
    alone = seen_alone(options.devices) if options.workers != 1 else ()
    default = torch.get_num_threads() if compute.device.type == CPU else max(1, len(alone))
    return Workers(options.workers or default, compute.device.type, alone, options.executor)


def _decoded(samples: Samples, geometry: Geometry, cache: Cache, step: Step, compute: Compute) -> Images:
    """Decode the images where they are held in memory; else they are decoded as they are needed."""
    images = ImagesOnDemand(samples.source, samples.keys, geometry, idle_cores(compute.device))
    held = fits(images, cache)
    if not held and geometry.cache is None:
        return images
    tick = step("data: decoding images")
    with still_there(samples):
        if not held:
            keep(images, tick)
            return images
        pixels = load_pixels(samples.source, images.keys, geometry, progress=lambda n: tick(n, len(images)))
        return ImagesHeld(images, pixels)


def _kept(preprocessing: Preprocessing, options: Options) -> Preprocessing:
    """Let decoded images be kept where that is asked for."""
    if options.cache_dir is None:
        return preprocessing
    if preprocessing.info.is_unnamed:
        what = "nothing tells the preprocessing, which is a function, from another whose images would be kept there"
        raise InputError("--cache-dir", what, "define it in a module, with no closure, or leave the folder out")
    code = source_hash((audit.data, audit.models.preprocessing))
    made_by = {"preprocessing": preprocessing.info.model_dump(mode="json"), "code": code, "torch": torch.__version__}
    return replace(preprocessing, geometry=with_cache(preprocessing.geometry, options.cache_dir, made_by))


def open_black_box(card: Card, *, card_path: Path, data_root: Path | None) -> BlackBox:
    """Open the file of a model whose inside is not given.

    Raises
    ------
    InputError
        If it is missing, damaged, or of another form than its kind has.
    """
    spec = card.model
    path = resolve(spec.path or spec.weights, card_path=card_path, data_root=data_root)
    if spec.name == PREDICTIONS:
        return read_predictions(spec, path, card.data.image)
    return OnnxModel.open(spec, path, opening_of(card))


def prepare_black_box(inputs: Inputs, box: BlackBox, options: Options, step: Step) -> BlackBoxRun:
    """Find the run directory of a model whose inside is not given; nothing is written yet."""
    if isinstance(box, OnnxModel):
        box = replace(box, preprocessing=_kept(box.preprocessing, options))
    seen = None if box.preprocessing is None else box.preprocessing.info
    served = None
    if inputs.finished is None:
        served = compare_box_served(
            inputs.card, inputs.samples, box, card_path=inputs.card_path, data_root=inputs.data_root
        )
    key = question_key(inputs, options, box.sha256, seen, served)
    return BlackBoxRun(
        card=inputs.card,
        run=options.run or run_folder(options.out, inputs.card.name, key),
        samples=inputs.samples,
        unit="head",
        card_path=inputs.card_path,
        card_content=inputs.content,
        data_root=inputs.data_root,
        question=key,
        weights=box.sha256,
        step=step,
        command=options.command,
        started=now().isoformat(),
        readout=inputs.readout,
        box=box,
        served=served,
    )


def question_key(
    inputs: Inputs,
    options: Options,
    weights: str,
    preprocessing: PreprocessingInfo | None,
    served: MeasuredControl | None = None,
) -> str:
    """Return the hash of all that a run's numbers depend on; ``weights`` is that of the weights.

    Where nothing tells the preprocessing from another, the hash is a new one each time: no other run is taken up.
    """
    rooms = (audit.data, audit.models, audit.patching, audit.batching, audit.evidence, audit.pipeline, audit.work)
    return question_hash(
        {
            "card": inputs.card.asked(),
            "data": inputs.samples.fingerprint,
            "weights": weights,
            "preprocessing": None if preprocessing is None else preprocessing.model_dump(mode="json"),
            "once": uuid.uuid4().hex if preprocessing is not None and preprocessing.is_unnamed else None,
            "served": None if served is None else served.numbers,
            **({"controls": added} if (added := versions_of_added()) else {}),
            "version": [__version__, source_hash(rooms)],
            "libraries": [torch.__version__, timm.__version__, torch.get_num_threads()],
            "computed": [options.device, options.precision],
        }
    )


@contextmanager
def still_there(samples: Samples) -> Iterator[None]:
    """Tell of an image that could be opened a moment ago what it is: nothing is wrong with the input as it was."""
    try:
        yield
    except DataError as error:
        if error.where not in set(samples.frame["image"]):
            raise
        what = f"could no longer be read ({error.what})"
        raise UnfinishedError(error.where, what, "restore it, and run again") from error


def _backbone(inputs: Inputs, cache: Path, step: Step, compute: Compute) -> Backbone:
    if inputs.finished is not None:
        spec = inputs.card.model.model_copy(update={"weights": "none"})
        return Backbone(spec, _architecture_of(inputs.finished))
    return _find(inputs.card.model, inputs, cache, step, compute)


def _architecture_of(run: Path) -> Path:
    """Return what says how a run's models are built and fed: their folder's configuration, or a model's own file."""
    folder, files = run / ARCHITECTURE, sorted((run / "models").glob("*.safetensors"))
    return files[0] if files and not folder.is_dir() else folder


def _control_backbone(inputs: Inputs, cache: Path, step: Step, compute: Compute) -> Backbone | None:
    """Return what the control models start from, where that is not what the audited model starts from."""
    if inputs.card.controls.weights is None or inputs.finished is not None:
        return None
    return _find(spec_of_controls(inputs.card), inputs, cache, step, compute)


def _find(spec: ModelSpec, inputs: Inputs, cache: Path, step: Step, compute: Compute) -> Backbone:
    """Find the weights of a model; ``rendered`` ones are made here."""
    if spec.weights == "rendered":
        base = rendered_base(spec, cache=cache, compute=compute.exact, progress=step("base: rendered faces"))
        return Backbone(spec, base)
    if spec.weights in ("pretrained", "none"):
        return Backbone(spec, None)
    return Backbone(spec, resolve(spec.weights, card_path=inputs.card_path, data_root=inputs.data_root))
