"""Models that are read through KerasHub, its own and those of Hugging Face's that its converters know."""
