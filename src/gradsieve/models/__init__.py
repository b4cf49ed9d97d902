"""The model: loading, LoRA, training it, and checkpoints that keep Adam's moments by name."""

import importlib
import logging

# Imported by peft wherever it is installed, bitsandbytes logs that it doesn't find a faster
# library. Only that message is hidden: the level is the caller's again afterwards.
_logger = logging.getLogger("bitsandbytes")
_level = _logger.level
_logger.setLevel(logging.ERROR)
importlib.import_module("peft")
_logger.setLevel(_level)
