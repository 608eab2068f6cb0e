"""Find out whether an image classifier treats groups differently, and which parts of it carry the difference.

>>> import vit_audit as va
>>> card = va.load_card("synthetic-expressions")
>>> card.name
'Rendered expressions, association planted'

Names are imported when they are first used, so that ``import vit_audit`` is fast and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from audit import __version__

if TYPE_CHECKING:
    from audit.api.cards import Card, built_in_cards, first_card, load_card
    from audit.api.checkpoints import Inspection, inspect_checkpoint
    from audit.api.cluster import merge, submit, work
    from audit.api.controls import StoredControls, export_controls, import_controls, list_controls
    from audit.api.data import Data, fetch, rendered_faces
    from audit.api.gating import GateResult, gate
    from audit.api.models import Net, Predictions, Preprocess, adapt, load_model, predictions, supported_models, wrap
    from audit.api.plans import Plan, plan
    from audit.api.repairing import RepairResult, open_repair, repair
    from audit.api.research import attribution, disparity, patch_heads, patch_parts, shift_means, sweep, written
    from audit.api.results import Result, diff, open_run, verify
    from audit.api.running import audit
    from audit.api.tracking import MLflowTracker, TensorBoardTracker, Tracker, WandbTracker
    from audit.errors import (
        AuditError,
        CardError,
        DataError,
        InputError,
        ModelError,
        UnfinishedError,
        WaitingError,
    )
    from audit.exit_codes import ExitCode
    from audit.records import Outcome

_HOMES = {
    "audit.api.cards": ("Card", "built_in_cards", "first_card", "load_card"),
    "audit.api.checkpoints": ("Inspection", "inspect_checkpoint"),
    "audit.api.cluster": ("merge", "submit", "work"),
    "audit.api.controls": ("StoredControls", "export_controls", "import_controls", "list_controls"),
    "audit.api.data": ("Data", "fetch", "rendered_faces"),
    "audit.api.gating": ("GateResult", "gate"),
    "audit.api.models": (
        "Net",
        "Predictions",
        "Preprocess",
        "adapt",
        "load_model",
        "predictions",
        "supported_models",
        "wrap",
    ),
    "audit.api.plans": ("Plan", "plan"),
    "audit.api.repairing": ("RepairResult", "open_repair", "repair"),
    "audit.api.research": ("attribution", "disparity", "patch_heads", "patch_parts", "shift_means", "sweep", "written"),
    "audit.api.results": ("Result", "diff", "open_run", "verify"),
    "audit.api.running": ("audit",),
    "audit.api.tracking": ("MLflowTracker", "TensorBoardTracker", "Tracker", "WandbTracker"),
    "audit.errors": (
        "AuditError",
        "CardError",
        "DataError",
        "InputError",
        "ModelError",
        "UnfinishedError",
        "WaitingError",
    ),
    "audit.exit_codes": ("ExitCode",),
    "audit.records": ("Outcome",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AuditError",
    "Card",
    "CardError",
    "Data",
    "DataError",
    "ExitCode",
    "GateResult",
    "InputError",
    "Inspection",
    "MLflowTracker",
    "ModelError",
    "Net",
    "Outcome",
    "Plan",
    "Predictions",
    "Preprocess",
    "RepairResult",
    "Result",
    "StoredControls",
    "TensorBoardTracker",
    "Tracker",
    "UnfinishedError",
    "WaitingError",
    "WandbTracker",
    "__version__",
    "adapt",
    "attribution",
    "audit",
    "built_in_cards",
    "diff",
    "disparity",
    "export_controls",
    "fetch",
    "first_card",
    "gate",
    "import_controls",
    "inspect_checkpoint",
    "list_controls",
    "load_card",
    "load_model",
    "merge",
    "open_repair",
    "open_run",
    "patch_heads",
    "patch_parts",
    "plan",
    "predictions",
    "rendered_faces",
    "repair",
    "shift_means",
    "submit",
    "supported_models",
    "sweep",
    "verify",
    "work",
    "wrap",
    "written",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vit_audit' has no attribute '{name}'")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
