"""uvicorn: connections, signals, shutdown."""
