"""The similarity matrix walked in tiles, without a B x B matrix."""
