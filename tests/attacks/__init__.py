"""Attacks on a running fleet: a real server, broker and agent, and somebody who stands between them or owns a part."""
