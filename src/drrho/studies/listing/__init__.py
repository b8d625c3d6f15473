"""What a folder holds: runs, stores, manifests and results of studies."""
