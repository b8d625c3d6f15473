"""Dual encoders made of a vision model and a text model that were trained separately."""
