"""The model: loading, LoRA, training it, and checkpoints that keep Adam's moments by name."""

import logging
import warnings

from transformers.utils import logging as transformers_logging

# peft 0.21 still asks transformers 5.23 by the old name, at each load.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
transformers_logging.disable_progress_bar()
# Imported by peft wherever it is installed, it tells of a faster library that it doesn't find.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
