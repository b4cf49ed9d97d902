"""Reading examples: files in any common format, chat templates and label masks, batches."""
