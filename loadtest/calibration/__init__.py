"""Simulated machines held against real ones: measurements, fits, and how far they are off."""
