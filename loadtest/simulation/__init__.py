"""The virtual clock: the gateway's core in front of the simulated engine. Pure."""
