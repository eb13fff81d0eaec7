"""How a long prompt is cut into slices, and whether that pays. Pure."""
