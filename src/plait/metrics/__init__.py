"""Metrics as pure functions: numbers, strings and arrays in, plain numbers out (numpy, no torch).

predictions + references -> the benchmark's published rule -> figures, per item and in all

A rule that a benchmark published stays as it is, quirks included; where releases disagree, the rule
is an argument. NaN and infinity never score: `checks.finite` refuses them.
"""
