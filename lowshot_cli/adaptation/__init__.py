"""Adding novel classes to a checkpoint: imprinting, fine-tuning, the bias they share."""
