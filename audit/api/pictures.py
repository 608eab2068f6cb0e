"""The picture of a network and its ledgers, as Axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from audit.records import Audit


def plot_ledgers(audit: Audit, contrast: str | None, outcome: str | None) -> list[Axes]:
    """Draw what every ledger has of one gap, from input to output; see :meth:`vit_audit.Result.plot_ledgers`."""
    asked = [] if audit.is_invalid else list(dict.fromkeys((row.contrast, row.outcome) for row in audit.answers))
    chosen = [
        own for own in asked if (contrast is None or own[0] == contrast) and (outcome is None or own[1] == outcome)
    ]
    if not chosen:
        known = "; ".join(f"{of} called {label}" for of, label in asked)
        fix = f"choose from: {known}" if asked else "ledgers are of gaps that were detected; see result.gaps"
        raise InputError("contrast, outcome", "no gap of these is in the ledgers", fix)
    import matplotlib.pyplot as plt  # so that a notebook shows the figure

    from audit.report.drawn.network import draw_network, ledger_panels, network_size
    from audit.report.text import Sentences

    panels, places = ledger_panels(audit, Sentences(audit), *chosen[0])
    if not panels:
        raise InputError(f"{chosen[0][0]}, {chosen[0][1]}", "no ledger has parts of this gap", "see result.answers")
    figure = plt.figure(figsize=network_size(len(panels)), layout="constrained")
    return draw_network(figure, panels, places)
