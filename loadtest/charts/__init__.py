"""Drawings of figures, as SVG and on a terminal, and figures written as people read them. Pure."""
