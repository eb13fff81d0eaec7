"""What a request costs: its tokens, what the engine has cached of them, and engine seconds. Pure."""
