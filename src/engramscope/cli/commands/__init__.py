"""Commands by topic; a file here is found by its name."""
