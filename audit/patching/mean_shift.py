"""The mean-shift patch: what a part puts out, moved to the midpoint of two groups' means of equal label.

For each label, with D half of the difference of what the part puts out on average in the reference and in the group,
token by token, D is added in images of the group and taken away in those of the reference; all that follows is computed
again. What carries nothing of the group moves by noise alone, and what it alone carries is gone from the gap.

Means are of one half of the subjects and patched are images of the other, and the other way about (cross-fitting), so
that nobody is moved by a mean that they are part of. A *shift* is a column of coefficients: D is the sum, over the
images of a label and half, of coefficient times output. Groups drawn at random (placebo) and means of subjects drawn
again (the check) are further columns. How the gap hangs on each image's output as a part of the means is the *pull* of
that image: the gradient, at the shift, times the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from audit.batching import batches, max_batch_size
from audit.errors import InputError
from audit.models.adapters.registry import Model, adapter
from audit.models.device import device_of, in_double, memory_of
from audit.models.readout import readout_of
from audit.patching.engine import Donor
from audit.patching.parts import STREAM, Kind, Part
from audit.patching.patch_parts import run_given
from audit.patching.shifts import SCALES, Array, Codes, Moved, Shifts, Sides
from audit.patching.sites import Trace, check_parts, kinds_of, record, trace_bytes
from audit.progress import Progress

Show = Callable[[Codes], torch.Tensor]  # from rows to images as the model reads them, on its device
AT_ONCE = 64  # images
GRAPH = 4.0  # traces' worth of memory that an image takes
HELD = 2**28  # bytes of shifts and slopes at once; parts beyond are measured after these
FULL = 1.06  # of Silverman's rule for the width of a kernel
QUARTILES = 1.349  # standard deviations of a normal distribution between its quartiles


@torch.no_grad()
def measure_shifts(
    model: Model,
    show: Show,
    shifts: Shifts,
    parts: Sequence[Part],
    outcomes: Sequence[int],
    *,
    influence: bool = True,
    progress: Progress | None = None,
) -> Moved:
    """Move what each part puts out, one part at a time, and return what that does.

    Two passes over the images as donors, and of each image that is moved one pass from each part on for every shift,
    once backward for each outcome. Memory is bounded by a batch and a few parts.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    show : callable
    shifts : Shifts
    parts : sequence of Part
        Each of one layer or depth.
    outcomes : sequence of int
        Class numbers.
    influence : bool
        Whether pulls are wanted; else they are 0, and nothing runs backward.
    progress : callable, optional
        Called with the images moved, part by part, and in all.

    Raises
    ------
    InputError
        If the model has no such part, or it is one of all layers.
    """
    check_shiftable(model, parts)
    rows, done = np.flatnonzero(shifts.weights), 0
    columns, n = shifts.coefficients.shape[1], len(shifts.label)
    unpatched = np.full((n, len(outcomes), len(SCALES)), np.nan)
    patched = np.full((len(rows), len(parts), columns, len(outcomes), len(SCALES)), np.nan)
    pulls = np.zeros((n, len(parts), len(outcomes), len(SCALES)))
    places = np.full(n, -1)
    places[rows] = np.arange(len(rows))
    look = _Look(model, show, tuple(outcomes), influence)
    for label in np.unique(shifts.label[rows]):
        cells = [np.flatnonzero((shifts.label == label) & (shifts.half == half)) for half in (0, 1)]
        asked = [of_half[shifts.weights[of_half] > 0] for of_half in cells]
        signs = np.where(shifts.is_group, 1.0, -1.0)
        for chunk in look.chunks(parts, columns, cells):
            some = [parts[k] for k in chunk]
            ends = [look.sums(of_half, shifts.coefficients[of_half], some, unpatched) for of_half in cells]
            width = look.kernel_widths(unpatched, cells, shifts.is_group)
            for moved, shift, donors in zip(asked, ends[::-1], cells[::-1], strict=True):
                if not len(moved):
                    continue
                own, found, slopes = look.moved(moved, some, shift, signs[moved], shifts.weights[moved], width)
                unpatched[moved] = own
                patched[places[moved][:, None], chunk] = found
                if influence:
                    pulls[donors[:, None], chunk] = look.pulls(donors, some, slopes)
                done += len(moved) * len(chunk)
                if progress is not None:
                    progress(done, len(rows) * len(parts))
    return Moved(rows, unpatched, patched, pulls)


def check_shiftable(model: Model, parts: Sequence[Part]) -> None:
    """Raise unless each of these is a part of one layer or depth that the model has."""
    check_parts(model, parts)
    for part in parts:
        if part.kind is Kind.LAYER and adapter(model).mlp(part.layer or 0) is not None:
            raise InputError(
                f"part '{part}'", "is two parts", f"name 'L{part.layer} attention' and 'L{part.layer} MLP'"
            )
        if part.layer is None and part.kind is not Kind.EMBEDDING:
            raise InputError(f"part '{part}'", "is of all layers", "name one of a layer, such as 'L7 attention'")


def parts_shifted(model: Model) -> list[Part]:
    """Return the parts asked by default: embedding, what each layer adds, and the stream that enters the last one."""
    body, kinds = adapter(model), kinds_of(model)
    apart: list[Kind] = [kind for kind in (Kind.ATTENTION, Kind.MLP) if kind in kinds]
    asked = apart or [kind for kind in (Kind.LAYER,) if kind in kinds]
    layers = [Part(kind, layer) for layer in range(body.depth) for kind in asked]
    stream = [Part(Kind.RESIDUAL, body.depth - 1)] if body.depth > 1 else []
    return [Part(Kind.EMBEDDING), *layers, *stream]


@dataclass(frozen=True)
class _Look:
    """What is measured of a model, for some outcomes."""

    model: Model
    show: Show
    outcomes: tuple[int, ...]
    influence: bool

    def chunks(self, parts: Sequence[Part], columns: int, cells: Sequence[Codes]) -> Iterator[list[int]]:
        """Yield places of parts whose shifts and slopes are held at once."""
        rows = np.concatenate(cells)[:1]
        trace = self._trace(rows, parts)
        each = 8 * 2 * (columns + len(SCALES) * len(self.outcomes))
        chunk, held = list[int](), 0
        for k, part in enumerate(parts):
            needed = each * self._output(trace, part)[0].numel()
            if chunk and held + needed > HELD:
                yield chunk
                chunk, held = [], 0
            chunk.append(k)
            held += needed
        yield chunk

    def sums(self, rows: Codes, coefficients: Array, parts: Sequence[Part], unpatched: Array) -> list[torch.Tensor]:
        """Return of each part its shifts (S, numbers), in double precision, and note what images are read as.

        Groups as they are are summed one by one, so that equal images make exactly no shift.
        """
        totals: list[torch.Tensor] = []
        sides = [coefficients[:, 0] > 0, coefficients[:, 0] < 0]
        for part in self._batches(len(rows)):
            trace = self._trace(rows[part], parts)
            unpatched[rows[part]] = self._numbers(adapter(self.model).classify(trace.leaving))
            along = torch.from_numpy(coefficients[part])
            for k, of_part in enumerate(parts):
                out = _flat(self._output(trace, of_part))
                shift = along.to(out).T @ out
                gained, lost = (
                    along[own, 0].to(out) @ out[own.to(out.device)]
                    for own in (torch.from_numpy(side[part]) for side in sides)
                )
                shift[0] = gained + lost
                if k == len(totals):
                    totals.append(torch.zeros_like(shift))
                totals[k] += shift
        return totals

    def moved(
        self,
        rows: Codes,
        parts: Sequence[Part],
        shifts: Sequence[torch.Tensor],
        signs: Array,
        counts: Array,
        width: Array,
    ) -> tuple[Array, Array, list[torch.Tensor]]:
        """Move images of one label.

        Returns
        -------
        tuple
            What they are read as, unpatched (R, outcomes, 3) and patched (R, parts, S, outcomes, 3); and of each part
            the slopes (outcomes * 3, numbers) of their weighted sum.
        """
        own, found = [], []
        slopes = [shift.new_zeros(len(self.outcomes) * len(SCALES), shift.shape[1]) for shift in shifts]
        for batch in self._batches(len(rows)):
            trace = self._trace(rows[batch], parts)
            own.append(self._numbers(adapter(self.model).classify(trace.leaving)))
            of_batch = []
            for k, (part, shift) in enumerate(zip(parts, shifts, strict=True)):
                out = self._output(trace, part)
                sign = torch.from_numpy(signs[batch]).to(shift).reshape(-1, *[1] * (out.ndim - 1))
                given = [(sign * column.reshape(out.shape[1:])).to(out) for column in shift]
                with torch.set_grad_enabled(self.influence):
                    logits = self._run(trace, part, given[0].requires_grad_(self.influence))
                    if self.influence:
                        slopes[k] += self._slopes(logits, given[0], counts[batch], width)
                others = [self._run(trace, part, column) for column in given[1:]]
                read = [self._numbers(moved.detach()) for moved in (logits, *others)]
                still = [not column.any() for column in shift]  # with gradients some kernels round otherwise
                of_batch.append(np.stack([own[-1] if s else r for s, r in zip(still, read, strict=True)], axis=1))
            found.append(np.stack(of_batch, axis=1))
        return np.concatenate(own), np.concatenate(found), slopes

    def pulls(self, rows: Codes, parts: Sequence[Part], slopes: Sequence[torch.Tensor]) -> Array:
        """Return the pull of images as donors: (N, parts, outcomes, 3)."""
        found = np.zeros((len(rows), len(parts), len(self.outcomes), len(SCALES)))
        for batch in self._batches(len(rows)):
            trace = self._trace(rows[batch], parts)
            for k, (part, slope) in enumerate(zip(parts, slopes, strict=True)):
                out = _flat(self._output(trace, part))
                found[batch, k] = (out @ slope.T / 2).cpu().numpy().reshape(-1, len(self.outcomes), len(SCALES))
        return found

    def kernel_widths(self, unpatched: Array, cells: Sequence[Codes], is_group: Sides) -> Array:
        """Return how wide around the decision images of a label count in the slope of a rate, in nats: (outcomes,).

        Silverman's rule, on the log-odds of the images of one side.
        """
        rows = np.concatenate(cells)
        spread, sizes = [], []
        for side in (False, True):
            given = unpatched[rows[is_group[rows] == side]][..., 0]
            quartiles = np.subtract(*np.quantile(given, [0.75, 0.25], axis=0)) / QUARTILES
            spread.append(np.minimum(given.std(axis=0), np.where(quartiles > 0, quartiles, np.inf)))
            sizes.append(len(given))
        width: Array = FULL * np.mean(spread, axis=0) * float(np.mean(sizes)) ** -0.2
        return width

    def _slopes(self, logits: torch.Tensor, given: torch.Tensor, counts: Array, width: Array) -> torch.Tensor:
        """Return the slopes (outcomes * 3, numbers) of the weighted means of log-odds, probability and rate."""
        readout, rows = readout_of(self.model), list[torch.Tensor]()
        log_odds, margins = readout.log_odds(logits), readout.margins(logits)
        alike = logits.shape[-1] == 2 or readout.decision == "threshold"  # the decision is one on the log-odds
        for place, number in enumerate(self.outcomes):
            (slope,) = torch.autograd.grad(log_odds[:, number].sum(), given, retain_graph=True)
            of_margin = slope
            if not alike:
                (of_margin,) = torch.autograd.grad(margins[:, number].sum(), given, retain_graph=True)
            p = torch.sigmoid(in_double(log_odds[:, number].detach()))
            near = torch.zeros_like(p)
            if width[place] > 0:
                z = in_double(margins[:, number].detach()) / width[place]
                near = torch.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * width[place])
            counted = torch.from_numpy(counts).to(p)
            rows += [
                w @ _flat(s) for w, s in ((counted, slope), (counted * p * (1 - p), slope), (counted * near, of_margin))
            ]
        return torch.stack(rows)

    def _batches(self, n: int) -> Iterator[slice]:
        free = memory_of(device_of(self.model))
        return batches(n, max_batch_size(AT_ONCE, GRAPH * trace_bytes(self.model), share=0.5, free=free))

    def _trace(self, rows: Codes, parts: Sequence[Part]) -> Trace:
        """Run images, and return what can be differentiated by."""
        mlp = any(part.kind is Kind.MLP for part in parts)
        trace = record(self.model, self.show(rows), mlp=mlp)
        return trace.take(torch.arange(len(rows)))

    def _run(self, trace: Trace, part: Part, given: torch.Tensor) -> torch.Tensor:
        """Return the logits where a part puts out so much more."""
        name, at = _place(part, depth=len(trace.entering))
        held: torch.Tensor | list[torch.Tensor] = getattr(trace, name)
        whole = held if isinstance(held, torch.Tensor) else held[at]
        changed = whole.clone()
        self._of(changed, part).add_(given)
        moved: Any = changed if isinstance(held, torch.Tensor) else [*held[:at], changed, *held[at + 1 :]]
        return run_given(self.model, trace, Donor(self.model, replace(trace, **{name: moved})), [part])

    def _output(self, trace: Trace, part: Part) -> torch.Tensor:
        """Return what a part puts out, images first; of a head z, whose write is linear in it."""
        name, at = _place(part, depth=len(trace.entering))
        held = getattr(trace, name)
        return self._of(held if isinstance(held, torch.Tensor) else held[at], part)

    def _of(self, whole: torch.Tensor, part: Part) -> torch.Tensor:
        body = adapter(self.model)
        if part.kind is Kind.HEAD:
            units: torch.Tensor = whole.unflatten(-1, (body.units(part.layer or 0), -1))
            return units[..., part.head or 0, :]
        if part.kind in (Kind.CLASS_TOKEN, Kind.PATCH_TOKENS):
            first = body.prefix_tokens
            return whole[:, :first] if part.kind is Kind.CLASS_TOKEN else whole[:, first:]
        return whole

    def _numbers(self, logits: torch.Tensor) -> Array:
        """Return log-odds, probability and whether it is called so: (B, outcomes, 3)."""
        readout, chosen = readout_of(self.model), list(self.outcomes)
        exact = in_double(logits)
        called = readout.called(exact)
        if called is None:
            called = readout.predicted(exact)[:, None] == torch.arange(exact.shape[1])
        three = [readout.log_odds(exact), readout.probabilities(exact), called.to(exact)]
        found: Array = torch.stack(three, dim=-1)[:, chosen].numpy()
        return found


def _place(part: Part, depth: int) -> tuple[str, int]:
    """Return where in a trace a part's output lies."""
    layer = part.layer or 0
    if part.kind in STREAM and layer == depth:
        return "leaving", 0
    if part.kind in (*STREAM, Kind.EMBEDDING):
        return "entering", layer
    return {Kind.HEAD: "head_activations", Kind.MLP: "mlp"}.get(part.kind, "attention"), layer


def _flat(out: torch.Tensor) -> torch.Tensor:
    """Return rows of numbers in double precision, on the processor."""
    return in_double(out.detach().flatten(1))
