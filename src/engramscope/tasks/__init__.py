"""Makers of pairs; one file each, found by its name."""
