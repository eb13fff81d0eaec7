"""Fits the simulated Spark to what a real one measured."""
