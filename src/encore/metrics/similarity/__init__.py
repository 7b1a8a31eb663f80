"""How alike two pieces of music, or two sequences of codes, are."""
