"""The command line. Command modules hold signatures; what a command does is imported in its body."""

from encore.cli.app import main

__all__ = ["main"]
