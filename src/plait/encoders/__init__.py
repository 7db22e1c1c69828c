"""One modality in, (batch, seq, dim) out."""
