"""Batches that carry a stable sample id, from WebDataset shards; and captioned scenes."""
