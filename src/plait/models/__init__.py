"""Model families, each with the same files: config, model, tasks, processor, weights; `auto` loads any of them."""
