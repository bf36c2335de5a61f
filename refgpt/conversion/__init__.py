"""Writing checkpoints in other formats."""
