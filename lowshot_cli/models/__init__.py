"""Backbones, embeddings and the cosine head."""
