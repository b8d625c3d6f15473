"""What is computed from samples once and kept: resized images and token ids."""
