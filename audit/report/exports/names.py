"""What exports call a control, so that they can be read side by side."""

from __future__ import annotations

from audit.records import Control
from audit.report.text import Sentences


def control_name(text: Sentences, control: Control) -> str:
    """Return the title of a control and where it was measured."""
    return f"{text.control('title', control)} ({text.control('where', control)})"
