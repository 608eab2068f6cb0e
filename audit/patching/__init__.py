"""Who donates what to whom, and the sweep."""
