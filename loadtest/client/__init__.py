"""The load generator on the real clock."""
