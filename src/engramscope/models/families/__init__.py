"""Architectures whose attention is not on the attention interface of transformers: a file each, named `model_type`."""
