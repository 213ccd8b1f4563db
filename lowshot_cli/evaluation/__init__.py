"""Accuracy and its intervals, predictions, and rejection of unknown classes."""
