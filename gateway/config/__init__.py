"""Every setting, and how its value is found. Pure."""
