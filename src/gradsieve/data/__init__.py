"""Examples in: files of any usual format, the chat template and its label mask, batches."""
