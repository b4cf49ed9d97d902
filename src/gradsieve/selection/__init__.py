"""From scores to a selection: an order of rows, and what is passed over on the way."""
