"""Ground of every room: processes, files, progress, randomness, provenance, errors."""
