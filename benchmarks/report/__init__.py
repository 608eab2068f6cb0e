"""How long a report takes to print."""
