"""The report as one self-contained HTML file: no script, no network, everything escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.report.formats import clean
from audit.report.view import ReportView
from audit.resources import resource_dir


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(resource_dir("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finished,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _finished(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(text: str) -> Markup:
    """Let a long identifier break after its separators and nowhere else."""
    escaped = Markup.escape(clean(text))
    return Markup(str(escaped).replace("_", "_<wbr>").replace("/", "/<wbr>"))  # noqa: S704 - escaped above


def _style_sheet(name: str) -> str:
    return (resource_dir("templates") / name).read_text(encoding="utf-8")


def render_html(view: ReportView, for_print: bool = False) -> str:
    """Print a view into the report's template.

    Parameters
    ----------
    view : ReportView
        The finished strings.
    for_print : bool
        True for the PDF: everything unfolded, the print style sheet, a table of contents with page numbers.

    Returns
    -------
    str
        A whole HTML document. Its Content-Security-Policy admits only its own style sheet, by hash, and
        ``data:`` images.
    """
    style = _style_sheet("report.css") + (_style_sheet("print.css") if for_print else "")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    template = _environment().get_template("report.html.j2")
    # The style sheet is ours, ships with the package and holds no foreign text.
    style_sheet = Markup(style)  # noqa: S704
    return template.render(view=view, style=style_sheet, policy=policy, for_print=for_print)
