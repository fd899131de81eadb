"""The pure half: no await, no open, no clock."""
