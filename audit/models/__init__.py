"""timm models: building, fine-tuning, safe loading."""
