"""Leaves of every model: torch only, plain ints in, never a config object."""
