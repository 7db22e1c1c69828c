"""Training losses as pure functions: tensors in, scalar out."""
