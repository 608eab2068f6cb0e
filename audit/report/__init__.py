"""The report: records -> view data -> templates. Imports no torch."""

from audit.report.legal import answers, law
from audit.report.render import load_audit, render_run

__all__ = ["answers", "law", "load_audit", "render_run"]
