"""The training loop and its parts: optimiser, schedules, stages, checkpoints, logging."""
