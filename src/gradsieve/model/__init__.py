"""The model: loading, LoRA, training it, and checkpoints that keep Adam's moments by name."""
