"""A model and tokenizer that the caller has in memory, in the place of files.

In: a loaded transformers model. Out: while it is lent, `load.py` gives views of it instead of
reading its name. A view is a module tree of its own whose parameters share the given tensors: an
adapter, a mode, a hook or `requires_grad` that is set on a view never shows on what was given, and
no weight is copied (unless the model has to move to another device).

Rejected: adapting the model itself and undoing it (a stop in between leaves it changed), and
saving it to a folder (a copy of the base model on disk).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsieve.errors import ModelError
from gradsieve.io import fingerprint

DTYPES = ("float32", "bfloat16", "float16")
"""What a recipe's `model.dtype` may be."""


@dataclass(frozen=True)
class Lent:
    """What stands for a model's files.

    Attributes:
        name: The recipe's `model.name`.
        model: None: loaded by its name.
        tokenizer: None: loaded by its name.
    """

    name: str
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def view(self, shared: bool = True) -> PreTrainedModel:
        """The model in eval mode, with frozen parameters of its own.

        What training libraries patch into modules (TRL's fused head, accelerate's autocast) is left
        out: a patched `forward` calls the given model's, not the view's. So are hooks: they would
        record passes that the caller didn't make.

        Args:
            shared: Whether they share the given ones' memory; else they are copies.
        """
        assert self.model is not None
        parameters = self.model.parameters() if shared else ()
        seen: dict[int, object] = {id(given): _frozen(given) for given in parameters}
        seen |= {id(hooks): type(hooks)() for hooks in _hooks(self.model)}
        view = copy.deepcopy(self.model, seen)
        for module in view.modules():
            module.__dict__.pop("forward", None)
        return view.requires_grad_(False).eval()

    @cached_property
    def weights(self) -> str:
        """A hash of all parameters and buffers, by name."""
        assert self.model is not None
        return fingerprint(
            [
                (name, str(tensor.dtype), tuple(tensor.shape), _hash(tensor))
                for name, tensor in self.model.state_dict().items()
            ]
        )


_LENT: ContextVar[Lent | None] = ContextVar("lent", default=None)


@contextmanager
def lend(lent: Lent) -> Iterator[None]:
    """Let `load.py` take the model's name for what is lent."""
    token = _LENT.set(lent)
    try:
        yield
    finally:
        _LENT.reset(token)


def lent_as(name: str) -> Lent | None:
    """What is lent under a name."""
    lent = _LENT.get()
    return lent if lent is not None and lent.name == name else None


def name_of(model: PreTrainedModel) -> str:
    """What a recipe calls a model that is in memory: where it came from, or its class."""
    return str(model.name_or_path) or type(model).__name__


def dtype_of(model: PreTrainedModel) -> str:
    """The recipe's `model.dtype` of a model.

    Raises:
        ModelError: If it is one that gradients are not taken in.
    """
    name = str(model.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(
            f"The model's weights are {name}.",
            type(model).__name__,
            f"Give it in one of {', '.join(DTYPES)}: model.to(torch.bfloat16).",
        )
    return name


def check_lendable(model: object) -> None:
    """Refuse what is no bare causal language model in one place.

    Raises:
        ModelError: Saying how to get one.
    """
    if isinstance(model, PeftModel) or (
        isinstance(model, nn.Module)
        and any(isinstance(module, BaseTunerLayer) for module in model.modules())
    ):
        raise ModelError(
            "The model has an adapter already; gradsieve trains its own in the warm-up.",
            type(model).__name__,
            "Give model.unload() (without the adapter) or model.merge_and_unload() (with it); to "
            "use checkpoints of this adapter as the warm-up, name them: "
            "warmup={'checkpoints': [...]}.",
        )
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ModelError(
            "This is no causal language model of transformers.",
            type(model).__name__,
            "Give what AutoModelForCausalLM.from_pretrained returns, unwrapped (model.module of "
            "DDP, model._orig_mod of torch.compile), or a name or folder.",
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise ModelError(
            "The model is not on one device.",
            f"{type(model).__name__}: {', '.join(devices)}",
            "Load it without device_map, or with device_map={'': 0}.",
        )


def _hooks(model: nn.Module) -> Iterator[Mapping[int, object]]:
    """The hooks of a pass, forward and backward, of every module."""
    for module in model.modules():
        yield from (module._forward_hooks, module._forward_pre_hooks)
        yield from (module._backward_hooks, module._backward_pre_hooks)


def _frozen(given: nn.Parameter) -> nn.Parameter:
    if type(given) is not nn.Parameter or not given.is_floating_point():
        return given  # a quantized weight carries more than its tensor, and is frozen anyway
    return nn.Parameter(given.detach(), requires_grad=False)


def _hash(tensor: torch.Tensor) -> str:
    """Of the bytes, one tensor at a time on the CPU; xxhash is as fast as memory."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return xxhash.xxh3_128_hexdigest(flat.numpy().data)
