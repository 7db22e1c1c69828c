"""Run golden cases against the models and say what holds."""
