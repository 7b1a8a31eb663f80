"""Model families Encore can load, one a file."""
