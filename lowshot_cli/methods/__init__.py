"""The paper: imprinting, fine-tuning and the operating point, on tensors alone."""
