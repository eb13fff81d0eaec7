"""Who waits, who goes, and what the engine has been given. Pure."""
