"""The pictures of the report's core pages, each from what of the record is drawn to the figure; needs no torch."""
