"""Model families Encore can load, one per file."""
