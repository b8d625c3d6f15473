"""Dual encoders out of a vision model and a text model that have never met."""
