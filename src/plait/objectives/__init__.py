"""Objectives: pure functions, tensors in, a scalar loss out; every docstring holds the formula and its source."""
