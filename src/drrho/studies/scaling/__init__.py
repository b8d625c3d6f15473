"""Scaling laws and data efficiency, fitted to finished runs."""
