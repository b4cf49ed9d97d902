"""The model: loading, LoRA, training, and checkpoints that store Adam's moments by weight name."""

import importlib
import logging

# peft imports bitsandbytes if it is installed, which then logs that it doesn't find a faster
# library. Only that message is hidden: afterwards the caller's log level is restored.
_logger = logging.getLogger("bitsandbytes")
_level = _logger.level
_logger.setLevel(logging.ERROR)
importlib.import_module("peft")
_logger.setLevel(_level)
