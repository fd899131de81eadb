"""Tests of the host, its fronts and its workers."""
