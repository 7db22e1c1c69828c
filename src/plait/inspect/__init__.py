"""Look inside: model facts, memory plans, the modality gap."""
