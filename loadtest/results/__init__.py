"""Records of requests, their summaries, and what is read from them: groups, figures, points. Pure."""
