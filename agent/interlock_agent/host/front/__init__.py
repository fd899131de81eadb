"""One tiny process a model: it owns the clients and chooses the worker. No numpy, no runtime."""
