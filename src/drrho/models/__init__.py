"""Two-tower models: the small CPU model, and whatever open_clip can build."""
