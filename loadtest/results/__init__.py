"""What was measured, and its summary. Pure."""
