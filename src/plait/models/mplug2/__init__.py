"""mPLUG-2 (arXiv 2302.00402): shared and modality-specific modules over text, image and video, picked per task."""
