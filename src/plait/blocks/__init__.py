"""Leaves: torch only, plain numbers in, never a config object."""
