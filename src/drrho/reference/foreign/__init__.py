"""Embeddings that other programs stored: one module reads one of their formats."""
