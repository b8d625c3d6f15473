"""Two-tower models: the small CPU model, open_clip's, Hugging Face's, and programs."""
