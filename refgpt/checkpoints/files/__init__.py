"""Kinds of files: each module reads one, and knows nothing of what a model is."""
