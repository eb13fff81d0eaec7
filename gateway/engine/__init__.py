"""The engine's end: requests to vLLM, and what vLLM says of itself."""
