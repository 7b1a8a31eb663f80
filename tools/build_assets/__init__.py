"""Rebuilds Encore's embedded assets from nothing: scores, sound, codec, models, table."""
