"""What the agent does: one function an effect, composed of ports and core. `table.EFFECTS` is the whole list."""
