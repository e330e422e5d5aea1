"""Studies of editors: one edit before and after, the table that compares them, and edits kept one upon another."""
