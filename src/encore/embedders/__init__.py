"""Audio embedders, one per file."""
