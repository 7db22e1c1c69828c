"""Published training stages, one Python function each."""
