"""The pure half of the agent: no await, no open, no clock, no dice."""
