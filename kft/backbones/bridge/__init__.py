"""SavedModels that train on every backend: TensorFlow computes them, and any Keras optimizer updates their weights."""
