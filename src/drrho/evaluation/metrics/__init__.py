"""Metrics as functions of embeddings and labels."""
