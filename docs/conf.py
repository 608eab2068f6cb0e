"""Settings of the documentation site, which ``make docs`` builds from the repository's root: any page may link to any.

Written from code while it is built: the reference of the Python interface, of the command line and of the record; the
gallery is run. Everything else is the Markdown that one reads in the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import audit  # noqa: E402  # from the sources that the pages are about

project = "vit-audit"
author = "The vit-audit maintainers"
version = release = audit.__version__
root_doc = "docs/index"
html_title = f"vit-audit {release}"
html_theme = "furo"
html_show_copyright = False
html_extra_path = ["_root"]
templates_path = [str(ROOT / "docs" / "_templates")]  # absolute: autosummary looks beside the sources

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_gallery.gen_gallery",
    "example_reports",
    "llms_txt",
    "record_fields",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "benchmarks/*/README.md",
    "docs/**.md",
    "docs/gallery/**.rst",
    "docs/generated/**.rst",
]
exclude_patterns = [".venv", ".venv-lowest", ".git", ".*_cache", "build", "dist", "reports", "docs/gallery/**.md5"]
highlight_language = "none"  # an indented block is a formula or a command

myst_heading_anchors = 4  # as GitHub makes them
myst_links_external_new_tab = False

autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autosummary_filename_map = {  # where file names do not tell capitals apart
    "vit_audit.Plan": "vit_audit.Plan-class",
    "vit_audit.Predictions": "vit_audit.Predictions-class",
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc has them in words, with shapes and units
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "examples/gallery",
    "gallery_dirs": "docs/gallery",
    "within_subsection_order": "FileNameSortKey",
    "run_stale_examples": True,  # the code may have changed where an example has not
    "abort_on_example_error": False,  # each failure is named, and any one is a warning, so an error
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "image_scrapers": ("matplotlib",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": r"matplotlib\.",
    "plot_gallery": "True",
    "copyfile_regex": "",
}
