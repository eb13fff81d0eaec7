"""Files: result folders and engine profiles."""
