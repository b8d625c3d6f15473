"""How good embeddings are: retrieval and zero-shot classification, computed in chunks."""
