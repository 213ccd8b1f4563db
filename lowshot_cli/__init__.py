"""Teach a trained image classifier a new class from a handful of images."""

__version__ = "0.1.0"
