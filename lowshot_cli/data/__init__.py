"""Datasets, picture files, splits and support draws."""
