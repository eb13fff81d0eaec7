"""What is sent, and when: plans, and the workloads that make them. Pure."""
