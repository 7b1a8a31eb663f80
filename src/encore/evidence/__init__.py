"""The evidence bundle: one archive that holds what a run claims, and the means to check it."""
