"""Parity: golden cases computed with the official implementations, run against ours.

    directory -> cases -> runner per kind -> our values -> comparison -> verdict per case

A case is data; everything a runner does follows from its files. Runners see inputs, weights and the *names, shapes and
types* of stored outputs, never stored values.
"""
