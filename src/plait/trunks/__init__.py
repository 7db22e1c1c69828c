"""Where modalities meet."""
