"""One request, from the client's connection to the engine's answer."""
