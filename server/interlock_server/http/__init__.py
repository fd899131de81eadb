"""The API: one table of routes, one file a resource."""
