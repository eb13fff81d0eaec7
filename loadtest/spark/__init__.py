"""The simulated Spark: a step-accurate model of vLLM's scheduler. Pure."""
