"""Models as a user brings them, made without this tool: a ResNet-50 of torchvision, a ViT folder of transformers."""
