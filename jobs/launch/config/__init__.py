"""Settings of the jobs. The docstring under a field is its `--help` text; what is heavy to import stays out of here."""
