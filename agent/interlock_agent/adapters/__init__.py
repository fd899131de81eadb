"""The thin half of the agent: one file for each thing outside the process."""
