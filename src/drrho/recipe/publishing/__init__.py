"""Exported models for others to find: their card, and the Hugging Face Hub."""
