"""The long form of simulation and fuzzing: `make soak`."""
