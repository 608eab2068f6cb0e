"""The YAML card: its schema, its faults with line numbers, and where its paths lead."""

from __future__ import annotations

from audit.card.first import first_card
from audit.card.load import check_card, find_card, load_card, resolve
from audit.card.schema import Card

__all__ = ["Card", "check_card", "find_card", "first_card", "load_card", "resolve"]
