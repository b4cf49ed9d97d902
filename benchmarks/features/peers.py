"""How other packages compute LESS's features on run.py's problem: each takes (problem, tokens).

Every peer gets prepared token ids and labels, its own batching by `tokens` (batches of padded rows,
sorted by length), and 8192 dims. Peers without Adam get the released code's Gamma through the
smallest change that the package allows, so that all compute the same rows:

- bergson 2.5.1: hooks; a subclass of its InMemoryCollector turns each module's gradients into
  Gamma. `global` is its dense projection, `per_module` its default (two-sided, 16 x 16 per module).
- traker 0.3.2: vmap over its FunctionalGradientComputer, its BasicProjector (dense Rademacher).
- dattri 0.3.0: vmap by torch.func (what its task does), its random_project (dense normal).
- paper: batch size 1, backward, concatenate, Gamma, traker's BasicProjector on 16 rows at a time,
  as the released code does.

Not measured: the time each peer takes to write to disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from run import Problem

DIM = 8192
PAPER_ROWS = 16
"""The number of gradients that the released code projects at a time (`project_interval`)."""


def official(g: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """The released code's Gamma."""
    return (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g**2 + 1e-8)


def _flat(problem: Problem) -> tuple[list[str], Tensor, Tensor]:
    """Names of the trained weights, and their two Adam moments, each flattened into one row."""
    names = [name for name, weight in problem.model.named_parameters() if weight.requires_grad]
    moments = problem.moments.exp_avg, problem.moments.exp_avg_sq
    m, v = (torch.cat([of[name].flatten() for name in names]) for of in moments)
    return names, m, v


def _projector(like: Tensor) -> Any:
    """traker's projector as the released code chooses it: fast_jl on a GPU if installed."""
    from trak.projectors import BasicProjector, CudaProjector, ProjectionType

    settings = {
        "grad_dim": len(like),
        "proj_dim": DIM,
        "seed": 0,
        "proj_type": ProjectionType.rademacher,
        "device": like.device,
    }
    if not like.is_cuda:
        return BasicProjector(**settings, dtype=torch.float32, block_size=128)
    if importlib.util.find_spec("fast_jl"):
        return CudaProjector(**settings, max_batch_size=PAPER_ROWS)
    return BasicProjector(**settings, dtype=torch.float16, block_size=128)


def paper(problem: Problem, tokens: int) -> Tensor:
    """The released code's steps; on a CPU in float32 (its float16 is slow there)."""
    names, m, v = _flat(problem)
    weights = dict(problem.model.named_parameters())
    projector = _projector(m)
    made: list[Tensor] = []
    rows: list[Tensor] = []
    batches = problem.batches(1)
    for number, batch in enumerate(batches, start=1):
        problem.model(**batch, use_cache=False).loss.backward()
        g = torch.cat([weights[name].grad.flatten() for name in names]).float()
        problem.model.zero_grad()
        gamma = official(g, m, v)
        rows.append(gamma.half() if gamma.is_cuda else gamma)
        if len(rows) == PAPER_ROWS or number == len(batches):
            made.append(projector.project(torch.stack(rows), model_id=0))
            rows = []
    return torch.cat(made)


def _example_loss(model: Any, weights: Any, buffers: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of ONE example, for vmap."""
    logits = torch.func.functional_call(
        model, (weights, buffers), (), {"input_ids": ids[None], "use_cache": False}
    ).logits
    targets = labels[1:]
    losses = torch.nn.functional.cross_entropy(
        logits[0, :-1], targets.clamp(min=0), reduction="none"
    )
    learnt = targets != -100
    return (losses * learnt).sum() / learnt.sum()


def traker(problem: Problem, tokens: int) -> Tensor:
    """TRAK's own gradient computer and projector, with Gamma applied between the two."""
    from trak.gradient_computers import FunctionalGradientComputer

    class Loss:
        get_output = staticmethod(_example_loss)

    names, m, v = _flat(problem)
    computer = FunctionalGradientComputer(
        problem.eager, Loss, len(m), torch.float32, torch.device("cpu"), names
    )
    trained = set(names)
    # Differentiates only the adapter; including the frozen base would be unfair to traker.
    frozen = {k: w.detach() for k, w in problem.eager.named_parameters() if k not in trained}
    computer.func_weights = {k: w for k, w in computer.func_weights.items() if k in trained}
    computer.func_buffers = {**computer.func_buffers, **frozen}
    projector = _projector(m)
    rows = []
    for batch in problem.batches(tokens):
        grads = computer.compute_per_sample_grad((batch["input_ids"], batch["labels"]))
        flat = torch.cat([grads[name].flatten(1) for name in names], dim=1)
        rows.append(projector.project(official(flat, m, v), model_id=0))
    return torch.cat(rows)


def dattri(problem: Problem, tokens: int) -> Tensor:
    """torch.func's vmap as in dattri's AttributionTask, and dattri's random_project."""
    from dattri.func.projection import random_project

    names, m, v = _flat(problem)
    everything = {k: w.detach() for k, w in problem.eager.named_parameters()}
    trained = {name: everything.pop(name) for name in names}
    buffers = {**dict(problem.eager.named_buffers()), **everything}
    gradient = torch.func.vmap(
        torch.func.grad(_example_loss, argnums=1), in_dims=(None, None, None, 0, 0)
    )
    rows = []
    for batch in problem.batches(tokens):
        grads = gradient(problem.eager, trained, buffers, batch["input_ids"], batch["labels"])
        flat = official(torch.cat([grads[name].flatten(1) for name in names], dim=1), m, v)
        project = random_project(flat, len(flat), DIM, len(flat), proj_type="rademacher")
        rows.append(project(flat))
    return torch.cat(rows)


def bergson(target: str) -> Callable[[Problem, int], Tensor]:
    """bergson's collector with exact Gamma; `target` is its projection_target."""

    def run(problem: Problem, tokens: int) -> Tensor:
        from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
        from datasets import Dataset

        logging.disable(logging.INFO)
        base = problem.model.base_model
        layers = {
            name: f"base_model.{name}.weight"
            for name, module in base.named_modules()
            if name.endswith((".default",)) and hasattr(module, "weight")
        }
        a_side = round((DIM / len(layers)) ** 0.5)

        class WithGamma(InMemoryCollector):
            def _module_gradient(self, module: Any, g: Tensor) -> Tensor:
                name = module._name
                weight = layers[name]
                gradients = g.mT.float() @ module._inputs.float()
                gamma = official(
                    gradients, problem.moments.exp_avg[weight], problem.moments.exp_avg_sq[weight]
                )
                if target == "global":
                    return gamma.flatten(1)
                rows, columns = gamma.shape[1:]
                return self.double_sided_projection(name, gamma, a_side, rows, columns)

            def forward_hook(self, module: Any, a: Tensor) -> None:
                module._inputs = a  # unprojected: Gamma is applied first

        data = Dataset.from_list(problem.examples)
        processor = GradientProcessor(
            projection_dim=DIM if target == "global" else a_side, projection_target=target
        )
        batches = problem.batch_indices(tokens)
        with TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            config = IndexConfig(
                run_path=f"{folder}/run",
                projection_dim=processor.projection_dim,
                loss_reduction="mean",
            )
            config.partial_run_path.mkdir()
            collector = WithGamma(
                model=base, data=data, cfg=config, processor=processor, target_modules=set(layers)
            )
            CollectorComputer(
                problem.model, data, collector=collector, batches=batches, cfg=config
            ).run_with_collector_hooks()
        found = torch.cat(list(collector.gradients.values()), dim=1)
        return found[[i for batch in batches for i in batch]]

    return run


PEERS: dict[str, tuple[str, Callable[[Problem, int], Tensor]]] = {
    "paper's procedure": ("trak", paper),
    "bergson dense, exact Gamma": ("bergson", bergson("global")),
    "bergson per module, exact Gamma": ("bergson", bergson("per_module")),
    "traker": ("trak", traker),
    "dattri": ("dattri", dattri),
}
"""The package and the runner of each peer, by name."""


def installed() -> dict[str, Callable[[Problem, int], Tensor]]:
    """The peers whose packages are installed; the others are reported as left out."""
    found = {n: run for n, (package, run) in PEERS.items() if importlib.util.find_spec(package)}
    for name in PEERS.keys() - found.keys():
        print(f"{name}: {PEERS[name][0]} is not installed, left out", flush=True)
    return found
