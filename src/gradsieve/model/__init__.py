"""The model: loading, LoRA, training it, and checkpoints that keep Adam's moments by name."""

import warnings

from transformers.utils import logging

# peft 0.21 still asks transformers 5.23 by the old name, at each load.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
logging.disable_progress_bar()
