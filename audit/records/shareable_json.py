"""``shareable.json``: what a copy of a run has lost on purpose."""

from __future__ import annotations

from typing import Literal

from audit.records.base import Record, Removed


class SharedCopy(Record):
    """The whole of ``shareable.json``: what a copy of a run that is handed on has lost on purpose."""

    shareable_version: Literal["1.0"] = "1.0"
    other_names: dict[str, int]  # how many subjects, images, pairs and values of match_on columns have other names
    left_out: dict[str, str]  # files that the run has and the copy has not; of models with their SHA-256
    removed: list[Removed]  # what else was taken out
