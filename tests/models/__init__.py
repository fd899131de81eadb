"""Real models through the real gate: what is published, not what was made to fit."""
