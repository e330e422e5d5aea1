"""Corpora of abstracts: retrieved from PubMed or read from a file, cleaned, counted, and kept as a table."""
