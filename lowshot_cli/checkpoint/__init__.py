"""A model that can be taught more, and its file."""
