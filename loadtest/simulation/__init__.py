"""The virtual clock: the gateway's core in front of the simulated engine, and how near real ones that comes. Pure."""
