"""Families: what each calls its tensors and its configuration's keys, in every format that holds it."""
