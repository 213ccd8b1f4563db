"""What a model gets right, and what it says of an image."""
