"""File formats: each module reads one format, without any knowledge of models."""
