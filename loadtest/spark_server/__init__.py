"""The simulated Spark as an OpenAI server."""
