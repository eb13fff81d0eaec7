"""Files: results, the profiles of simulated engines, what real ones measured, and the templates of pages."""
