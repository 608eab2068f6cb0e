"""The report as a tagged PDF/A-3a with ``audit.json`` inside; the same bytes for the same record."""

from __future__ import annotations

import gc
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pikepdf

from audit.errors import UnfinishedError

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def render_pdf(html: str, audit_json: bytes, audit_sha256: str, started: str, *, name: str = "audit.json") -> bytes:
    """Print the HTML of a report to PDF.

    Parameters
    ----------
    html : str
        The document that ``render_html(view, for_print=True)`` returned.
    audit_json : bytes
        Embedded as an attachment.
    audit_sha256 : str
        Identifier of the PDF.
    started : str
        ISO 8601 start of the audit: the only date that the file carries.
    name : str
        What the attachment is called.

    Returns
    -------
    bytes
        The PDF; byte-identical for equal arguments and equal versions of WeasyPrint and its fonts.

    Raises
    ------
    UnfinishedError
        If WeasyPrint or the Pango library beneath it cannot be loaded.
    """
    moment = _moment(started)
    with _source_date(moment), _collecting_later():
        return _finished(_printed(html, audit_json, audit_sha256, moment, name))


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Hold back the garbage collector: layout makes very many objects, and nearly all of them live to its end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _printed(html: str, audit_json: bytes, audit_sha256: str, moment: datetime, name: str) -> bytes:
    try:
        from weasyprint import HTML, Attachment  # slow to import, and needs Pango
        from weasyprint.urls import URLFetcher
    except OSError as error:
        raise UnfinishedError(
            "report.pdf",
            f"WeasyPrint cannot load Pango ({error})",
            "apt-get install libpango-1.0-0 libpangoft2-1.0-0",
        ) from error
    # Only what the report itself carries is opened: neither the network nor the disk.
    fetcher = URLFetcher(allowed_protocols=["data"], allow_redirects=False)
    attachment = Attachment(
        file_obj=io.BytesIO(audit_json),
        name=name,
        description="The record that this report is printed from",
        relationship="Source",
        created=moment,
        modified=moment,
        url_fetcher=fetcher,
    )
    document = HTML(string=html, url_fetcher=fetcher, base_url=None)
    with warnings.catch_warnings():
        # WeasyPrint leaves its colour profile to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        printed: bytes = document.write_pdf(
            attachments=[attachment],
            pdf_variant="pdf/a-3a",
            pdf_tags=True,
            pdf_identifier=audit_sha256[:32].encode("ascii"),
        )
    return printed


def _finished(printed: bytes) -> bytes:
    """Add what WeasyPrint leaves out: the scope of header cells; and drop the attachment it names twice."""
    buffer = io.BytesIO()
    with pikepdf.open(io.BytesIO(printed)) as pdf:
        _drop_doubled_attachment(pdf)
        tree = pdf.Root.get("/StructTreeRoot")
        if tree is not None:
            _scope_header_cells(tree)
        pdf.save(buffer, deterministic_id=True, object_stream_mode=pikepdf.ObjectStreamMode.generate)
    return buffer.getvalue()


def _drop_doubled_attachment(pdf: pikepdf.Pdf) -> None:
    attached = pdf.Root.get("/AF")
    if attached is None:
        return
    unique = {entry.objgen: entry for entry in attached}
    pdf.Root["/AF"] = pikepdf.Array(unique.values())


def _scope_header_cells(tree: Any) -> None:
    """Walk the structure tree: header cells in a table head name columns, those in a body name rows."""
    waiting = [(tree, False)]
    while waiting:
        element, in_head = waiting.pop()
        kind = element.get("/S")
        in_head = in_head or kind == "/THead"
        if kind == "/TH":
            scope = pikepdf.Name.Column if in_head else pikepdf.Name.Row
            element["/A"] = pikepdf.Dictionary(O=pikepdf.Name.Table, Scope=scope)
        children = element.get("/K")
        if isinstance(children, pikepdf.Dictionary):
            waiting.append((children, in_head))
        elif isinstance(children, pikepdf.Array):
            waiting.extend((child, in_head) for child in children if isinstance(child, pikepdf.Dictionary))


def _moment(started: str) -> datetime:
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return _EPOCH  # a foreign date must not keep a report from being printed
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@contextmanager
def _source_date(moment: datetime) -> Iterator[None]:
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = str(int(moment.timestamp()))  # read by fontTools when it writes fonts
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = before
