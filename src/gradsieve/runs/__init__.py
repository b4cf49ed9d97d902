"""The run folder: where each stage's output lives, and what it holds."""
