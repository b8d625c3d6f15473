"""Formats of embeddings that other programs stored, imported into a reference store."""
