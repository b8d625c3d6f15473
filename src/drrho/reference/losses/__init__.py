"""Stored reference losses."""
