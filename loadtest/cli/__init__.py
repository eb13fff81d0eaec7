"""The command line, from the top."""
