"""The source of a causal language model and its tokenizer: files, or user-supplied objects.

In: the recipe's `model` section, and optionally user-supplied objects. Out: the configuration, the
tokenizer, the model on the machine's device, a model without weights, and a fingerprint.

A user-supplied model is never changed. `load` returns a separate module tree whose parameters share
the user's tensors: an adapter, a mode, a hook or `requires_grad` set on it doesn't affect the
user's model, and no weight is copied (unless it moves to another device).

Rejected: adapting the user's model itself and undoing that (an interruption leaves it changed), and
saving it to a folder (a copy of the base model on disk).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
import xxhash
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gradsieve.errors import ModelError, first_line
from gradsieve.io import fingerprint
from gradsieve.models.device import device
from gradsieve.models.saved import (
    check_sizes,
    check_weights,
    model_fingerprint,
    no_memory_for,
    read,
    read_model,
)
from gradsieve.models.shape import BYTES
from gradsieve.recipe.schema import ModelConfig


@dataclass(frozen=True)
class ModelSource:
    """A model in a folder or on the hub, with its own tokenizer or a user-supplied one.

    If `gpus` is above 1, its layers are spread over that many of the GPUs visible to this process.
    """

    settings: ModelConfig
    own_tokenizer: PreTrainedTokenizerBase | None = None
    gpus: int = 1

    def config(self) -> Any:
        """The configuration; `ModelError` if it is missing or has impossible sizes."""
        found = read(AutoConfig, self.settings, "configuration")
        check_sizes(found.get_text_config(), self.settings.name)
        return found

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, without any additions; `ModelError` if it is missing."""
        if self.own_tokenizer is not None:
            return self.own_tokenizer
        return cast(PreTrainedTokenizerBase, read(AutoTokenizer, self.settings, "tokenizer"))

    def load(self, *, will_change: bool = False) -> PreTrainedModel:
        """The model with frozen weights, on the machine's device.

        If the caller `will_change` the weights, user-supplied ones are copied.

        Raises:
            ModelError: If it can't be loaded as a causal language model, if it doesn't fit into
                memory, or if weights are missing or not finite.
        """
        loaded = self._weights(will_change).requires_grad_(False)
        _keep_packing(loaded)
        if self.settings.gradient_checkpointing:
            _checkpoint_activations(loaded)
        is_placed = hasattr(loaded, "hf_device_map") or getattr(loaded, "is_quantized", False)
        if not is_placed:
            try:
                loaded = loaded.to(device())
            except torch.OutOfMemoryError as error:
                raise no_memory_for(self.settings, error) from error
        refuse_infinite(loaded.named_parameters(), f"model.name {self.settings.name}")
        return loaded

    def _weights(self, will_change: bool) -> PreTrainedModel:
        return read_model(self.settings, self.gpus)

    def meta_model(self) -> PreTrainedModel:
        """The model on torch's meta device: shapes without weights; takes about a second."""
        config = self.config()
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                made = AutoModelForCausalLM.from_config(
                    config,
                    dtype=getattr(torch, self.settings.dtype),
                    trust_remote_code=self.settings.trust_remote_code,
                )
        except Exception as error:  # a model's constructor may raise anything on wrong settings
            raise ModelError(
                "The model cannot be built.",
                f"model.name {self.settings.name}: {first_line(error)}",
                "Give a causal language model that this version of transformers knows.",
            ) from None
        return made.requires_grad_(False)

    def check_weights(self) -> None:
        """Refuse missing or damaged weights, naming the file; only headers are read."""
        check_weights(self.settings)

    @cached_property
    def fingerprint(self) -> str:
        """A fingerprint of the weights: of local files' bytes, or of the hub name and commit."""
        name = self.settings.name
        if (found := model_fingerprint(name)) is not None:
            return found
        commit = getattr(self.config(), "_commit_hash", None)
        return fingerprint([name, commit or self.settings.revision])


@dataclass(frozen=True)
class InMemoryModel(ModelSource):
    """A user-supplied causal language model from transformers."""

    model: PreTrainedModel = field(kw_only=True)

    def config(self) -> Any:
        """A copy, because building a model from a configuration sets attributes of it."""
        return copy.deepcopy(self.model.config)

    def check_weights(self) -> None:
        """Nothing to check: the weights are in memory."""

    def _weights(self, will_change: bool) -> PreTrainedModel:
        """The model in eval mode, with its own frozen parameters.

        Patches of `forward` by training libraries (TRL's fused head, accelerate's autocast) are
        left out, because they call the user's model. Hooks are left out too, because they would
        record passes that the user didn't make.
        """
        parameters = () if will_change else self.model.parameters()
        seen: dict[int, object] = {id(parameter): _frozen(parameter) for parameter in parameters}
        for module in self.model.modules():
            for kind in ("forward", "forward_pre", "backward", "backward_pre"):
                hooks = getattr(module, f"_{kind}_hooks")
                seen[id(hooks)] = type(hooks)()
        view = copy.deepcopy(self.model, seen)
        for module in view.modules():
            module.__dict__.pop("forward", None)
        return view.eval()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all parameters and buffers, by name."""
        tensors = self.model.state_dict().items()
        return fingerprint([(name, str(t.dtype), tuple(t.shape), _hash(t)) for name, t in tensors])


def model_source(
    settings: ModelConfig,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    gpus: int = 1,
) -> ModelSource:
    """The source of a recipe's model; user-supplied objects replace the saved ones."""
    if model is None:
        return ModelSource(settings, tokenizer, gpus)
    return InMemoryModel(settings, tokenizer, model=model)


def section_of(model: PreTrainedModel) -> dict[str, str]:
    """The recipe's `model` section for a user-supplied model: its name and dtype.

    Raises:
        ModelError: If it is not a bare causal language model on one device, or if its dtype is not
            one that gradients can be computed in.
    """
    name = type(model).__name__
    modules = model.modules() if isinstance(model, nn.Module) else ()
    if any(isinstance(module, PeftModel | BaseTunerLayer) for module in modules):
        raise ModelError(
            "The model has an adapter already; gradsieve trains its own in the warm-up.",
            name,
            "Give model.unload() (without the adapter) or model.merge_and_unload() (with it); to "
            "use checkpoints of this adapter as the warm-up, name them: "
            "warmup={'checkpoints': [...]}.",
        )
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ModelError(
            "This is not a transformers causal language model.",
            name,
            "Give what AutoModelForCausalLM.from_pretrained returns, unwrapped (model.module of "
            "DDP, model._orig_mod of torch.compile), or a name or folder.",
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        what = "The model was loaded in torch.inference_mode(): no gradient passes through it."
        raise ModelError(what, name, "Load it outside of torch.inference_mode().")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        todo = "Load it without device_map, or with device_map={'': 0}."
        raise ModelError("The model is not on one device.", f"{name}: {', '.join(devices)}", todo)
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in BYTES:
        todo = f"Give it in one of {', '.join(BYTES)}: model.to(torch.bfloat16)."
        raise ModelError(f"The model's weights are {dtype}.", name, todo)
    return {"name": str(model.name_or_path) or name, "dtype": dtype}


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # transformers 5.0 has only the old name, which is deprecated in later versions.
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    try:
        getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
    except ValueError as error:
        what = "The model cannot recompute its activations."
        where = f"model.gradient_checkpointing: {first_line(error)}"
        raise ModelError(what, where, "Leave model.gradient_checkpointing out.") from None


def refuse_infinite(weights: Iterable[tuple[str, nn.Parameter]], where: str) -> None:
    """Refuse weights that are not finite before anything is computed; runs at memory speed."""
    for name, weight in weights:
        if not weight.is_floating_point() or not weight.numel():
            continue
        if not all(bool(end.isfinite()) for end in weight.detach().aminmax()):  # NaN: both are NaN
            todo = "Copy or download it again; or give it as it was before its training diverged."
            raise ModelError("There are weights that are not finite.", f"{where}: {name}", todo)


def _keep_packing(model: nn.Module) -> None:
    """Keep 4-bit weights in the only format that has a backward pass.

    On CPUs with AVX512-BF16, bitsandbytes permanently repacks them in a forward pass without
    gradients, and no gradient flows through repacked weights.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module).update(support_avx512bf16_for_cpu=False)


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
        return parameter  # a quantized weight has more than its tensor, and is frozen anyway
    return nn.Parameter(parameter.detach(), requires_grad=False)


def _hash(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes, computed on the CPU; xxhash is as fast as memory."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return xxhash.xxh3_128_hexdigest(flat.numpy().data)
