"""Evaluation: task x data x metric -> report."""
