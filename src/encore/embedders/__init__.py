"""Audio embedders, one a file."""
