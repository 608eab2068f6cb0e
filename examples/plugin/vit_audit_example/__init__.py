"""A reader, a family of models, a control and an export for vit-audit."""
