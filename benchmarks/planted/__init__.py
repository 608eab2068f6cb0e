"""Is the tool right? Models whose truth is known."""
