"""What preemptible prefill does at an engine: the load, the variants, the figures, and what is advised."""
