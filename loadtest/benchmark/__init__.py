"""What is measured at one's own engine: what work costs there, and what preemptible prefill would do for it."""
