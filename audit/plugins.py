"""What other packages add, by the entry points that they declare: readers, families of models, controls, exports."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from audit.errors import InputError, one_line_of

# Groups of entry points.
DATASETS, MODELS = "vit_audit.datasets", "vit_audit.models"
CONTROLS, EXPORTS = "vit_audit.controls", "vit_audit.exports"


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, in order.

    Raises
    ------
    InputError
        If two packages declare the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda p: (p.name, p.value)):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            what = f"is declared by {package_of(other)} and by {package_of(point)}"
            raise InputError(f"{group}, '{point.name}'", what, "uninstall one of them")
    return found


def package_of(point: EntryPoint) -> str:
    """Return the package of an entry point, with its version."""
    return "another package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def load_plugin(point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises
    ------
    InputError
        If that fails, whatever the package raises.
    """
    try:
        return point.load()
    except Exception as error:
        raise broken(point, f"cannot be imported ({type(error).__name__}: {one_line_of(error)[:200]})") from error


def broken(point: EntryPoint, what: str) -> InputError:
    """Return the error of a plug-in that does not do what its group asks for."""
    return InputError(f"plug-in '{point.name}' of {package_of(point)}", what, "repair that package, or uninstall it")
