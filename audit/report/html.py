"""The report as one self-contained HTML file: no network, everything escaped, readable without its one script."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.report import wording
from audit.report.formats import clean
from audit.report.view import ReportView
from audit.report.view_diff import DiffView
from audit.resources import resource_dir

UNFOLDED = 12  # findings that are open when the page is


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


def _file(name: str) -> str:
    return (resource_dir("templates") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return a hash as a Content-Security-Policy has it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


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
        A whole HTML document. Its Content-Security-Policy admits only its own style sheet and script, by their hashes,
        and ``data:`` images.
    """
    style = _file("report.css") + (_file("print.css") if for_print else "")
    script = "" if for_print else _file("report.js")
    return _page("report.html.j2", style, script, view=view, for_print=for_print, unfolded=UNFOLDED)


def render_diff(view: DiffView) -> str:
    """Print a comparison of two runs as a whole HTML document, self-contained as a report is."""
    named = {"view": view, "certificate": wording.NO_CERTIFICATE}
    return _page("diff.html.j2", _file("report.css"), _file("report.js"), **named)


def _page(template: str, style: str, script: str, **named: object) -> str:
    """Print a template with its style sheet, its script and the policy that admits nothing else.

    Style sheet and script are ours, ship with the package and hold no foreign text.
    """
    runs = f" script-src 'sha256-{_digest(script)}';" if script else ""
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}';{runs} img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=policy,
            **named,
        )
    )
