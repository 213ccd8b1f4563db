"""Backbones, embeddings and the head."""
