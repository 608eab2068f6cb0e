"""The Python interface; ``vit_audit`` re-exports it."""
