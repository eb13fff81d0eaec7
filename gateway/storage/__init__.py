"""Files: keys, what was learned, profiles, configuration."""
