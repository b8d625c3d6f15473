"""Ranking of references before training."""
