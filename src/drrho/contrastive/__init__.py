"""Embeddings of pairs -> a scalar: DRRho-CLIP, and FastCLIP and CLIP as its special cases."""
