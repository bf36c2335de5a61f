"""Layouts: how the files of a model lie at a path. Each module has ``is_at`` and ``open_at``."""
