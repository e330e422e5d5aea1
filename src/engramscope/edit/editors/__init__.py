"""One folder (or file) for each editor, found by its name; it imports the core of `edit`, and never a sibling."""
