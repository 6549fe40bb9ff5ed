"""What happens to a model between build and evaluation: trainable parts, optimizer, fit, resume, predict."""
