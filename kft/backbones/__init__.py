"""Pretrained models: found by handle, loaded as a `Backbone`."""
