"""A reader, a family of models and an export for vit-audit."""
