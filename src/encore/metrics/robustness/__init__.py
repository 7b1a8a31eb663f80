"""Attacks: do the tracks come back when weights or prompts are changed?"""
