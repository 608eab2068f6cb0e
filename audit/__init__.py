"""Find out whether an image classifier treats groups differently, and which parts of it carry the difference."""

from importlib.metadata import version

__version__ = version("vit-audit")
