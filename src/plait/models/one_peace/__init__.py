"""ONE-PEACE: shared attention, one feed-forward per modality (arXiv 2305.11172)."""
