"""Shared by all packages: errors, checks of arguments, small files, wording of messages, memory, progress."""
