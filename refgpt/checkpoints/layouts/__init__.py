"""Layouts: how the files of a model are arranged at a path. Each module has ``is_at`` and ``open_at``."""
