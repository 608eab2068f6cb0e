"""From a card to a table of samples: readers, labels, groups, splits, and every image accounted for."""

from __future__ import annotations

from audit.data.assemble import read_samples, samples_from_frame
from audit.data.readers import ControlImages, read_control_images
from audit.data.samples import AUDIT_SPLITS, HELD_BACK, SPLITS, UNKNOWN, ImageSource, Samples
from audit.data.summary import describe_data

__all__ = [
    "AUDIT_SPLITS",
    "HELD_BACK",
    "SPLITS",
    "UNKNOWN",
    "ControlImages",
    "ImageSource",
    "Samples",
    "describe_data",
    "read_control_images",
    "read_samples",
    "samples_from_frame",
]
