"""What is sent, and when. Pure."""
