"""From numbers to graded claims; needs no torch."""
