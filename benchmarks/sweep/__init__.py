"""Is the sweep fast? A race against the peers, and against the arithmetic itself."""
