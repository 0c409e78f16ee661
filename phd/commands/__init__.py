"""The `phd` command, one module for each of its commands."""
