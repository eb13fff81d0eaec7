"""Runs of a workload on either clock, and what is kept of them."""
