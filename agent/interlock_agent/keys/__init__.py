"""The device's private key, where it is not in a file: for the agent, and for its fetcher."""
