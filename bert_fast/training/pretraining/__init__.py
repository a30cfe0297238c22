"""Pre-training from raw documents: what it is told, its phases, and the run."""
