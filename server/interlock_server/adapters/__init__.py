"""The thin half: one file for each thing outside the process."""
