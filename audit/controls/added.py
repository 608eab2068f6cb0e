"""Controls of other packages: further known effects, which must show on the model before anything is said of groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import torch

from audit.controls.identities import Subject
from audit.controls.verdict import COMPARE, REDUCE, MeasuredControl, Reduction, Relation, judge_numbers
from audit.errors import one_line_of
from audit.models.adapters.registry import Model
from audit.plugins import CONTROLS, broken, load_plugin, package_of, plugins
from audit.records import AddedWords, Bound

LONGEST = 300  # signs of what is said of a control
SAID = ("title", "statistic", "meaning", "fix")
Measure = Callable[[Model, torch.Tensor, torch.Tensor], Sequence[float]]


@dataclass(frozen=True)
class AddedControl:
    """A control that a package adds: its entry point in ``vit_audit.controls`` names one of these.

    Parameters
    ----------
    measure : callable
        Given the audited model in evaluation mode, some of the audit's images as the model takes them, and as many
        others as donors (both of shape (B, C, H, W)), returns numbers: the same for the same model and images.
    reduced : {"largest", "smallest", "mean"}
        How they are summed up: by the largest absolute value, by the smallest value, by the mean with its 95% interval.
    relation, threshold
        What the sum must be: ``">"`` and 0.0, say. One that is missing or not finite never passes.
    title, statistic, meaning, fix : str
        What is checked, what the number is with its unit, what passing shows, what to do if it failed; one line each.
    judged : Bound
        What of the mean is compared: its value, or an end of its interval.
    """

    measure: Measure
    reduced: Reduction
    relation: Relation
    threshold: float
    title: str
    statistic: str
    meaning: str
    fix: str
    judged: Bound = Bound.VALUE


def added_controls() -> dict[str, tuple[AddedControl, EntryPoint]]:
    """Return the controls that installed packages declare, by name.

    Raises
    ------
    InputError
        If one cannot be imported, or is no ``AddedControl`` whose words fit a line.
    """
    return {name: (_checked(load_plugin(point), point), point) for name, point in plugins(CONTROLS).items()}


def versions_of_added() -> dict[str, str]:
    """Return the package of each added control with its version, on which a run's numbers depend."""
    return {name: package_of(point) for name, point in plugins(CONTROLS).items()}


def _checked(control: object, point: EntryPoint) -> AddedControl:
    if not isinstance(control, AddedControl):
        raise broken(point, "is no audit.controls.added.AddedControl")
    if control.relation not in COMPARE or control.reduced not in REDUCE:
        raise broken(point, f"compares by {control.relation!r} what is summed up as {control.reduced!r}")
    for name in SAID:
        said = getattr(control, name)
        if not isinstance(said, str) or not said.strip() or not said.isprintable() or len(said) > LONGEST:
            raise broken(point, f"has a {name} that is not one line of at most {LONGEST} signs")
    return control


def run_added(subject: Subject) -> list[MeasuredControl]:
    """Run every added control on the audited model and some of its images.

    Raises
    ------
    InputError
        If one fails, or gives no numbers.
    """
    return [_run(name, control, point, subject) for name, (control, point) in added_controls().items()]


def _run(name: str, control: AddedControl, point: EntryPoint, subject: Subject) -> MeasuredControl:
    try:
        numbers = [float(v) for v in control.measure(subject.model, subject.images, subject.donors)]
    except Exception as error:
        raise broken(point, f"measures nothing ({type(error).__name__}: {one_line_of(error)[:200]})") from error
    if not numbers:
        raise broken(point, "measures nothing (it gives no numbers)")
    said = {word: getattr(control, word) for word in SAID}
    return judge_numbers(
        numbers,
        control.reduced,
        control.relation,
        control.threshold,
        judged=control.judged,
        id=f"added:{name}",
        check="added",
        kind="effect",
        added=AddedWords(package=package_of(point), **said),
        n=len(subject.images),
    )
