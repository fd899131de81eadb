"""Hostile bytes for every parser that reads what comes from outside: `make fuzz`."""
