"""Held-out questions: prompts, generated answers, metrics."""
