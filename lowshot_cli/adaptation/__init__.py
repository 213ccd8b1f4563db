"""Novel classes into a checkpoint: imprinting, fine-tuning, the bias they share."""
