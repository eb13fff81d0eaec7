"""What came of runs: figures side by side, on a terminal and as a page. Pure."""
