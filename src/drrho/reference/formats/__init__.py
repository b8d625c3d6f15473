"""Embeddings that other programs stored, read into a reference store."""
