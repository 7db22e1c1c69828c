"""Manifests, sources, mixtures, the shipped mini data set and its builder."""
