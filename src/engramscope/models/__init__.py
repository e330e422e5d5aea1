"""Load a causal language model, name its parts, and give access to its sites."""
