"""The release engineer's side."""
