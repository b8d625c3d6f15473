"""Reading of samples from shards, tables and folders, local or remote."""
