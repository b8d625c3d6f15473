"""Comparison of several methods over several seeds."""
