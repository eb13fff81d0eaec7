"""How fast the engine is, and what will happen next. Pure."""
