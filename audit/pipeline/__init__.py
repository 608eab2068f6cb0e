"""The stages of an audit; ``run_audit`` is their order."""
