"""Cost of gradient features on a CPU, beside the unavoidable forward and backward pass.

    python benchmarks/features/run.py --out benchmarks/features/cpu.json

Runners take turns (A B A B ...), each figure is the median of `--repeats` turns, on one thread. A
random Llama with LoRA and made-up Adam moments; tokens are random, two thirds of each example are
labelled. Each batched runner has the batch size that was fastest for it in a trial before.

- floor: plain forward and backward of the batch, frozen base, nothing done with the gradients
- sketch, rademacher (8192 dims), exact (57 directions): gradsieve
- paper: batch size 1, backward, concatenate, the released code's Gamma, traker's BasicProjector
  with 8192 dims (needs `pip install traker`; left out where it is missing)

Errors are the rms error of cosines between examples, times sqrt(8192), against the same updates
unprojected in float32: about 1 for dense signs.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from gradsieve.data.batches import length_sorted_batches
from gradsieve.influence.exact import ExactProducts
from gradsieve.influence.extract import FeatureExtractor, Moments
from gradsieve.influence.gradients import lora_layers
from gradsieve.influence.projection import Projection

DIM = 8192
SUBTASKS = 57
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
SETTINGS = {
    "toy: r 16, 128 tokens": {"r": 16, "vocabulary": 512, "mixed": False},
    "mixed lengths, r 8": {"r": 8, "vocabulary": 512, "mixed": True},
    "mixed lengths, r 32": {"r": 32, "vocabulary": 512, "mixed": True},
    "mixed lengths, r 128": {"r": 128, "vocabulary": 512, "mixed": True},
    "mixed lengths, r 32, 32,000 words": {"r": 32, "vocabulary": 32000, "mixed": True},
}


class Problem:
    """A model, its moments and examples."""

    def __init__(self, r: int, vocabulary: int, mixed: bool, count: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
        )
        lora = LoraConfig(r=r, lora_alpha=4 * r, target_modules=MODULES, init_lora_weights=False)
        self.model = get_peft_model(LlamaForCausalLM(config), lora).eval()
        weights = {name: layer.weight for name, layer in lora_layers(self.model).items()}
        self.sizes = {name: weight.numel() for name, weight in weights.items()}
        self.moments = Moments(
            {name: torch.randn_like(weight) * 1e-4 for name, weight in weights.items()},
            {name: torch.rand_like(weight) * 1e-7 for name, weight in weights.items()},
            step=50,
        )
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(math.log(100), 0.7, count), 16, 512).astype(int)
        self.lengths = lengths.tolist() if mixed else [128] * count
        self.ids = [torch.randint(0, vocabulary, (length,)) for length in self.lengths]

    def batches(self, tokens: int) -> list[dict[str, Tensor]]:
        """Padded on the right, sorted by length."""
        made = []
        for batch in length_sorted_batches(self.lengths, tokens):
            ids = torch.nn.utils.rnn.pad_sequence([self.ids[i] for i in batch], batch_first=True)
            position = torch.arange(ids.shape[1])[None]
            length = torch.tensor([self.lengths[i] for i in batch])[:, None]
            learnt = (position >= length // 3) & (position < length)
            made.append({"input_ids": ids, "labels": ids.masked_fill(~learnt, -100)})
        return made


Runner = Callable[[Problem, int], "Tensor | None"]


def floor(problem: Problem, tokens: int) -> None:
    for batch in problem.batches(tokens):
        problem.model(**batch, use_cache=False).loss.backward()
        problem.model.zero_grad()


def extracted(projection: Projection | ExactProducts) -> Runner:
    def run(problem: Problem, tokens: int) -> Tensor:
        extract = FeatureExtractor(problem.model, projection, problem.moments)
        return torch.cat([extract(batch).rows for batch in problem.batches(tokens)])

    return run


def exact(problem: Problem) -> Runner:
    directions = torch.randn(SUBTASKS, sum(problem.sizes.values()))
    return extracted(ExactProducts(functional.normalize(directions, dim=1), problem.sizes))


def paper(problem: Problem, count: int) -> Tensor:
    """The released code's steps, in float32 (its float16 is slow on a CPU)."""
    from trak.projectors import BasicProjector, ProjectionType

    weights = [p for p in problem.model.parameters() if p.requires_grad]
    names = [name for name, p in problem.model.named_parameters() if p.requires_grad]
    m = torch.cat([problem.moments.exp_avg[name].flatten() for name in names])
    v = torch.cat([problem.moments.exp_avg_sq[name].flatten() for name in names])
    projector = BasicProjector(
        grad_dim=len(m),
        proj_dim=DIM,
        seed=0,
        proj_type=ProjectionType.rademacher,
        device=torch.device("cpu"),
        dtype=torch.float32,
        block_size=128,
    )
    rows = []
    for batch in problem.batches(1)[:count]:
        problem.model(**batch, use_cache=False).loss.backward()
        g = torch.cat([p.grad.flatten() for p in weights])
        problem.model.zero_grad()
        rows.append((0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g**2 + 1e-8))
    return projector.project(torch.stack(rows), model_id=0)


def cosine_error(found: Tensor, whole: Tensor) -> float:
    pairs = torch.triu_indices(len(whole), len(whole), 1).unbind()
    unit = [functional.normalize(rows.double(), dim=1) for rows in (found, whole)]
    gaps = [(rows @ rows.T)[pairs] for rows in unit]
    return float((gaps[0] - gaps[1]).square().mean().sqrt()) * math.sqrt(DIM)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(setting: dict, count: int, slow: int, repeats: int) -> dict:
    problem = Problem(**setting, count=count)
    batched = {
        "floor": floor,
        "sketch": extracted(Projection("sketch", DIM)),
        "rademacher": extracted(Projection("rademacher", DIM)),
        f"exact, {SUBTASKS} subtasks": exact(problem),
    }
    trials = (1024, 2048, 4096, 8192)
    best = {}
    for name, run in batched.items():
        run(problem, trials[0])  # caches signs
        times = {tokens: seconds(lambda r=run, t=tokens: r(problem, t)) for tokens in trials}
        best[name] = min(times, key=times.__getitem__)
    calls = {name: lambda r=run, n=name: r(problem, best[n]) for name, run in batched.items()}
    counts = dict.fromkeys(calls, count)
    try:
        import trak  # noqa: F401

        calls["paper"] = lambda: paper(problem, slow)
        counts["paper"] = slow
    except ImportError:
        pass
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call) / counts[name])
    whole = extracted(Projection("none"))(problem, 2048)
    errors = {
        name: cosine_error(batched[name](problem, 2048), whole) for name in ("sketch", "rademacher")
    }
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "values": sum(problem.sizes.values()),
        "seconds_an_example": medians,
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "times_the_floor": {name: value / medians["floor"] for name, value in medians.items()},
        "tokens_per_batch": best,
        "cosine_error_times_sqrt_dim": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--slow", type=int, default=2, help="examples of the slow runners")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": "python benchmarks/features/run.py "
        f"--count {arguments.count} --slow {arguments.slow} --repeats {arguments.repeats}",
        "machine": f"{platform.machine()}, one thread",
        "torch": torch.__version__,
        "settings": {},
    }
    for name, setting in SETTINGS.items():
        if arguments.only in name:
            found = measure(setting, arguments.count, arguments.slow, arguments.repeats)
            result["settings"][name] = found
            print(name, json.dumps(found["times_the_floor"]), flush=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
