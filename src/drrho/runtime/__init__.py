"""What every run needs: processes, files, progress, randomness, provenance, errors."""
