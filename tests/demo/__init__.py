"""The main job, end to end, on real models and real files: `make demo`."""
