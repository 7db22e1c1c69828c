"""Arrays and text -> tensors: transforms, tokenizers, collation."""
