"""The report: records -> view data -> templates. Imports no torch."""

from audit.report.legal import LEGAL_SCREEN, answers
from audit.report.render import load_audit, render_run

__all__ = ["LEGAL_SCREEN", "answers", "load_audit", "render_run"]
