"""The fetcher: a short-lived child of the agent. Trust refresh, segments in, verified bytes out.

Hostile bytes and the libraries that parse them are here, never in the agent, and their memory is given back.
"""
