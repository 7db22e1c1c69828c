"""Checkpoint files, read without executing anything, and reversible key rules."""
