"""Reference models: embeddings and losses computed once, stored, and read by sample id."""
