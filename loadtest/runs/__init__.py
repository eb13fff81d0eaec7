"""Runs at real servers, in real time: the client that sends a load, and the servers that are started for it."""
