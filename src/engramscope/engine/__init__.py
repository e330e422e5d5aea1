"""Runs and patches as data, and what executes them."""
