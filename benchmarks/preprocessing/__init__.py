"""What wrong preprocessing does to a gap between groups."""
