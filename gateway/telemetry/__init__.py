"""What is reported of a request: spans, metrics, a log line, the decision log."""
