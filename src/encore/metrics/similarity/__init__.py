"""Similarity of audio and of code sequences."""
