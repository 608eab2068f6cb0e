"""Where templates and built-in cards lie, in a checkout and in a wheel, and what tells where data lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

DATA_VARIABLE = "VIT_AUDIT_DATA"  # of the environment: where the data lie, in place of ``--data``


def resource_dir(kind: Literal["templates", "datasets"]) -> Path:
    """Return the folder of the Jinja templates or of the built-in cards.

    Parameters
    ----------
    kind : {"templates", "datasets"}
        In a wheel they lie inside the package as ``_templates`` and ``_datasets``; in a checkout beside it.

    Returns
    -------
    pathlib.Path
        An existing folder.

    Raises
    ------
    FileNotFoundError
        If the installation is broken and neither place exists.
    """
    package = Path(__file__).parent
    for candidate in (package / f"_{kind}", package.parent / kind):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{kind}: not found beside or inside {package}; reinstall vit-audit")
