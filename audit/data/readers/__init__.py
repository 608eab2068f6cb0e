"""Readers: each turns what lies on disk into one raw table and a source of its images."""

from __future__ import annotations

from audit.data.readers.cifar100 import read_cifar100
from audit.data.readers.control import ControlImages, read_control_images
from audit.data.readers.croissant import read_croissant
from audit.data.readers.folder import read_folder
from audit.data.readers.hf import read_huggingface
from audit.data.readers.published import READERS, read_published
from audit.data.readers.raw import RawTable
from audit.data.readers.table import read_image_table

__all__ = [
    "READERS",
    "ControlImages",
    "RawTable",
    "read_cifar100",
    "read_control_images",
    "read_croissant",
    "read_folder",
    "read_huggingface",
    "read_image_table",
    "read_published",
]
