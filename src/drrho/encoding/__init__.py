"""A model over a data set: unit embeddings of images and texts."""
