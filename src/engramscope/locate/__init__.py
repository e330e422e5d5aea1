"""Sweeps: from a declared sweep to runs, and from logits to a table of effects."""
