"""Rewrite rules that several passes share, or that are too many for the file of their pass."""
