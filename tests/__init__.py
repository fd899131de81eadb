"""Tests of Interlock; the folders mirror the rooms."""
