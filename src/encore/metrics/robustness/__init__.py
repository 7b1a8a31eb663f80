"""Attacks that change the model's weights or the prompts to recover forgotten tracks."""
