"""From scores to a selection: the order of rows, and the rules that pass over some."""

ROWS, MESSAGES, ANSWERS = "selected.jsonl", "messages.jsonl", "prompt_completion.jsonl"
"""Files of a selection: the original rows, chat messages, and prompts with completions."""
