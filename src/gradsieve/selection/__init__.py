"""From scores to a selection: an order of rows, and what is passed over on the way."""

ROWS, MESSAGES, ANSWERS = "selected.jsonl", "messages.jsonl", "prompt_completion.jsonl"
"""Files of a selection: the rows as they came in, as chat messages, and as prompts with answers."""
