"""ONNX files: a model that answers images, run by onnxruntime; its inside is not looked into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audit.card.schema import ModelSpec
from audit.data.decode import Opening
from audit.data.pixels import load_pixels
from audit.data.samples import Samples
from audit.errors import ModelError
from audit.extras import needs
from audit.models.black_box import Answers, BlackBox, answers_of, probabilities
from audit.models.preprocessing import Preprocessing, stated_preprocessing
from audit.models.readout import Readout, readout_of_card
from audit.models.transforms import luma, normalised
from audit.progress import Progress
from audit.records import Access
from audit.store import file_hash

TYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # of its images
CHANNELS = (1, 3)  # gray, or red, green and blue
BATCH = 64  # images at once, where the file leaves it open
TRIED = 4  # images that are tried before anything is written
FIX_LAYOUT = "export it with one input of float images: batch, channels (1 or 3), height, width; or channels last"


@dataclass(frozen=True)
class Layout:
    """What a file takes: images of ``side`` pixels, ``batch`` at once (None: any number), how they lie, their type."""

    side: int
    batch: int | None
    channels: int
    channels_last: bool
    dtype: type[np.floating[Any]]

    def of(self, images: torch.Tensor) -> npt.NDArray[np.floating[Any]]:
        """Lay images (N, channels, height, width) out as the file takes them."""
        laid_out = images.permute(0, 2, 3, 1) if self.channels_last else images
        return np.ascontiguousarray(laid_out.numpy(), dtype=self.dtype)


@dataclass(frozen=True)
class OnnxModel(BlackBox):
    """A model in an ONNX file."""

    spec: ModelSpec  # its classes, and how its outputs are read
    classes: tuple[str, ...]
    sha256: str  # of the file
    layout: Layout  # of its input
    preprocessing: Preprocessing
    where: str  # the file, for messages
    session: Any
    input_name: str
    output_name: str
    one_logit: bool  # whether it has one output, of the second of two classes
    access: Access = Access.ANSWERS

    @property
    def side(self) -> int:  # type: ignore[override]
        """Side of its images in pixels."""
        return self.layout.side

    @property
    def readout(self) -> Readout:
        """How its outputs are read."""
        return replace(readout_of_card(self.spec), one_logit=self.one_logit)

    @classmethod
    def open(cls, spec: ModelSpec, path: Path, opening: Opening) -> OnnxModel:
        """Open a file and find its input and its output; ``opening`` is how image files become RGB.

        Raises
        ------
        ModelError
            If onnxruntime is not installed, the file is none of ONNX, or its input or output is of another form.
        """
        where = str(path)
        if spec.classes is None:
            raise ModelError("model.classes", "nothing says what the outputs mean", "name them in their order")
        session = _open_session(path)
        if len(session.get_inputs()) != 1:
            raise ModelError(where, f"has {len(session.get_inputs())} inputs", FIX_LAYOUT)
        (given,) = session.get_inputs()
        layout = _layout(given, spec, where)
        output, one_logit = _output(session.get_outputs(), spec, where)
        return cls(
            spec=spec,
            classes=tuple(spec.classes),
            sha256=file_hash(path),
            layout=layout,
            preprocessing=stated_preprocessing(spec, layout.side, layout.channels).opened(opening),
            where=where,
            session=session,
            input_name=given.name,
            output_name=output,
            one_logit=one_logit,
        )

    def check(self, samples: Samples) -> Samples:
        """Run a few images through it."""
        rows = np.arange(min(TRIED, len(samples.frame)), dtype=np.int64)
        self._scores(samples, rows, lambda _done, _total: None)
        return samples

    def answer(self, samples: Samples, rows: npt.NDArray[np.int64], progress: Progress) -> Answers:
        """Run images through it."""
        scores = self._scores(samples, rows, progress)
        images = samples.frame["image"].iloc[rows]
        likely = probabilities(scores, self.spec, images.tolist(), self.where, self.readout)
        return answers_of(scores, likely, self.readout)

    def _scores(self, samples: Samples, rows: npt.NDArray[np.int64], progress: Progress) -> npt.NDArray[np.float64]:
        """Return what it puts out, (N, classes); of a fixed batch, the last one is filled up with its first image."""
        keys = samples.frame["image"].iloc[rows].tolist()
        size = self.layout.batch or BATCH
        seen, parts = self.preprocessing, []
        for start in range(0, len(keys), size):
            pixels = torch.from_numpy(load_pixels(samples.source, keys[start : start + size], seen.geometry))
            raw = pixels.permute(0, 3, 1, 2)
            coloured = self.layout.channels == 1 and raw.shape[1] == 3
            images = self.layout.of(normalised(luma(raw) if coloured else raw, seen.mean, seen.std))
            missing = 0 if self.layout.batch is None else size - len(images)
            full = np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images
            parts.append(self._run(full, len(images)))
            progress(min(start + size, len(keys)), len(keys))
        scores = np.concatenate(parts)
        if not self.one_logit:
            return scores
        logits = self.spec.scores == "logit" or (self.spec.scores is None and bool(((scores < 0) | (scores > 1)).any()))
        return np.hstack([np.zeros_like(scores) if logits else 1 - scores, scores])

    def _run(self, images: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.float64]:
        try:
            (scores,) = self.session.run([self.output_name], {self.input_name: images})
        except Exception as error:  # whatever onnxruntime raises
            what = f"an image does not pass through it ({' '.join(str(error).split())[:200]})"
            raise ModelError(self.where, what, "export it again") from error
        if self.one_logit and scores.ndim == 1:
            scores = scores[:, None]
        if scores.shape != (len(images), 1 if self.one_logit else len(self.classes)):
            what = f"gives {tuple(scores.shape)} for {len(images)} images and {len(self.classes)} classes"
            raise ModelError(self.where, what, "correct model.classes, or export it with logits, one for each class")
        if not np.isfinite(scores).all():
            raise ModelError(self.where, "gives values that are not finite", "correct model.mean and model.std")
        return np.asarray(scores[:count], dtype=np.float64)


def _open_session(path: Path) -> Any:
    onnxruntime = needs("onnxruntime", "model.name: onnx", error=ModelError)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever onnxruntime makes of a damaged file
        what = f"is no ONNX file that onnxruntime opens ({' '.join(str(error).split())[:200]})"
        raise ModelError(str(path), what, "name a whole .onnx file") from error


def _layout(given: Any, spec: ModelSpec, where: str) -> Layout:
    """Return what the file's input says of the images that it takes."""
    shown = f"its input '{given.name}' is {given.type} of {given.shape}"
    sizes = [n if isinstance(n, int) and n > 0 else None for n in given.shape]
    if given.type not in TYPES or len(sizes) != 4:
        raise ModelError(where, shown, FIX_LAYOUT)
    channels_last = sizes[1] not in CHANNELS and sizes[3] in CHANNELS
    batch, channels, height, width = (sizes[i] for i in ((0, 3, 1, 2) if channels_last else (0, 1, 2, 3)))
    if channels not in (None, *CHANNELS):
        raise ModelError(where, shown, FIX_LAYOUT)
    sides = {n for n in (height, width) if n is not None}
    if len(sides) > 1:
        raise ModelError(where, f"{shown}: images are not square", FIX_LAYOUT)
    fixed = next(iter(sides), None)
    if fixed is None and spec.image_size is None:
        raise ModelError("model.image_size", f"{shown}: any size", "say which one is in use, in pixels")
    if fixed is not None and spec.image_size not in (None, fixed):
        what = f"is {spec.image_size}, and {shown}"
        raise ModelError("model.image_size", what, f"write {fixed}, or leave it out")
    side = fixed or spec.image_size
    assert side is not None
    return Layout(side, batch, channels or 3, channels_last, TYPES[given.type])


def _output(outputs: Any, spec: ModelSpec, where: str) -> tuple[str, bool]:
    """Name the output that has a number for each class, or one for two classes; tell whether it has but one."""
    classes, pair = len(spec.classes or ()), spec.output == "sigmoid" and len(spec.classes or ()) == 2
    fits = [o.name for o in outputs if len(o.shape) == 2 and (o.shape[1] == classes or not isinstance(o.shape[1], int))]
    exact = [o.name for o in outputs if len(o.shape) == 2 and o.shape[1] == classes]
    single = [o.name for o in outputs if len(o.shape) == 1 or (len(o.shape) == 2 and o.shape[1] == 1)]
    if len(exact or fits) == 1:
        return str((exact or fits)[0]), False
    if pair and not fits and len(single) == 1:
        return str(single[0]), True
    shown = ", ".join(f"{o.name} {o.shape}" for o in outputs)
    what = f"{len(exact or fits)} of its outputs have {classes} numbers an image: {shown}"
    fix = "name as many model.classes as it has outputs, or export it with one output"
    if classes == 2 and not pair and not fits and len(single) == 1:
        fix = "where its one output is that of the second class, write model.output: sigmoid"
    raise ModelError(where, what, fix)
