"""The second model: a frozen encoder, and its embeddings computed once and kept on disk."""
