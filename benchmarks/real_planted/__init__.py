"""Is the tool right in a pretrained ViT on photographs?"""
