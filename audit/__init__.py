"""Find out whether a vision transformer treats groups differently, and which attention heads carry it."""

from importlib.metadata import version

__version__ = version("vit-audit")
