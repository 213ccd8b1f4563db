"""Datasets, image files, splits and support draws."""
