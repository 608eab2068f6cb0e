"""The plot of cost against images, heads and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

AXES = {"images": "images", "heads": "heads per layer", "depth": "layers"}


def plot_cost(series: Mapping[str, Mapping[str, Sequence[float]]], title: str, path: Path) -> None:
    """Write an SVG with one panel for each quantity and one line for each contender, from ``race.cost_series``."""
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    panels = figure.subplots(1, len(series), squeeze=False)[0]
    for panel, (quantity, found) in zip(panels, series.items(), strict=True):
        for name, seconds in found.items():
            if name != "at":
                panel.plot(found["at"], seconds, marker="o", markersize=4, label=name)
        panel.set(xlabel=AXES[quantity], xlim=(0, None), ylim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
