"""Where the head that carries a channel looks in the rendered image that a report shows of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audit.controls.spec import Channel
from audit.patching.attention import can_look, mean_attention
from audit.patching.sites import Site
from audit.records import Control, ControlLook
from audit.units import parse_name

DIGITS = 4  # of a share; the last bits differ between machines


def example_looks(tried: Sequence[Channel], controls: Sequence[Control]) -> list[ControlLook]:
    """Return a map of attention for each channel, in the image that stands at its place among those evaluated.

    Of rendered images only: a report has no picture of real ones. Heads of blocks that the tool does not know are left
    out, and slices of channels, which attend to nothing.

    Parameters
    ----------
    tried : sequence of Channel
    controls : sequence of Control
        Judged; that of one head by itself names the head.
    """
    looks = []
    for image, channel in enumerate(tried):
        own = [c for c in controls if (c.check, c.form, c.channel) == ("head", "models", channel.spec.name) and c.head]
        model = channel.clean[0]
        for name in [c.head for c in own]:
            site = Site(*parse_name(name))
            if can_look(model, site):
                grid = mean_attention(model, channel.pixels, np.array([image]), [site])[site]
                weights = [[round(float(v), DIGITS) for v in row] for row in grid]
                looks.append(ControlLook(channel=channel.spec.name, image=image, name=name, weights=weights))
    return looks
