"""Exact token counts of prompts, from the engine or from the model's own tokenizer."""
