"""Reading finished runs: explanations of single examples, and comparisons of methods."""
