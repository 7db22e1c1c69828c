"""mPLUG-Owl2 and mPLUG-Owl2.1 (arXiv 2311.04257): config, vision, abstractor, model, processor, weights."""
