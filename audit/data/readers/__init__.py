"""Readers: each turns what lies on disk into one raw table and a source of its images."""

from __future__ import annotations

from audit.data.readers.control import ControlImages, read_control_images
from audit.data.readers.open import read_raw
from audit.data.readers.raw import RawTable

__all__ = ["ControlImages", "RawTable", "read_control_images", "read_raw"]
