"""Backbones for images from where images' models are published: timm's folders, torch's checkpoints, Keras' own files."""
