"""The stages of an audit; ``run_audit`` is the line they stand in."""
