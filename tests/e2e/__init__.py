"""Real processes on both sides: server, agent, host, fronts, workers, fetchers, command lines; tiny models."""
