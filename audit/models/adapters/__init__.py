"""What patching must know of each family of models."""
