"""Ranking and filtering of the pairs of a data set by a run and its reference."""
