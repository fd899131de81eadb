"""The second service: it serves models to applications, and owns every front and worker. Nothing heavy here."""
