"""How the official code computes what Plait computes otherwise, written from the specifications, for ratios alone.

Each is shown equal to what it is measured against before anything is timed; tests/test_benchmarks.py holds them to
golden cases where there are some.
"""
