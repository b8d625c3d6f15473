"""Vision models and text models alone, and the dual encoders that are made of them."""
