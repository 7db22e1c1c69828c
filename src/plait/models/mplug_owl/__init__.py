"""mPLUG-Owl: images and videos into a language model (arXiv 2304.14178)."""
