"""Cost of gradient features on a GPU at the shape of Llama-2-7B, compared with plain passes.

    python benchmarks/features/gpu.py --out benchmarks/features/gpu.json      (or: make bench-gpu)

Uses random weights in bfloat16 and synthetic Adam moments; downloads nothing. Runners take turns
within a group; each figure is the median of `--repeats` turns at the batch size that was the
runner's fastest in a preceding trial. A runner that has used `--limit` seconds gets no more trials
or turns. The second group has dense signs and the installed peers, on fewer examples and only of
the first length; the floor and the sketch run in both groups.

- matmul: this device's best rate for a product of two square matrices
- floor: plain forward and backward of the batch, frozen base, gradients discarded
- sketch, exact (57 directions), dense signs: gradsieve
- paper's procedure: batch 1, backward, concatenate, official Gamma, project 16 rows at a time, with
  fast_jl if it imports, else with traker's dense BasicProjector (as the released code does). CUDA
  13 dropped the architecture that fast_jl 0.1.3 names; for gpu.json its setup.py was set to 9.0
- bergson, dense and per module, with exact Gamma

TFLOP/s count only the floor's matrix products: 4 per frozen weight and token, 6 per LoRA parameter
and token, and those of attention. A runner that fails or runs out of memory is listed with the
reason. With a small shape this also runs on a CPU, which is how it is tested.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import peers
import torch
from peft import LoraConfig, get_peft_model
from run import MODULES, Problem, Runner, commit, exact, extracted, find_distribution, floor
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from gradsieve.gradients.adam import Moments
from gradsieve.gradients.per_example import lora_layers
from gradsieve.gradients.projection import Projection

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PEERS = ("paper's procedure", "bergson dense, exact Gamma", "bergson per module, exact Gamma")


class GpuProblem(Problem):
    """A large model, its Adam moments, and examples of a single length."""

    def __init__(self, shape: argparse.Namespace, length: int, count: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=2048,
        )
        self.vocabulary, self.length = shape.vocabulary, length
        with torch.device(DEVICE):
            base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            base.requires_grad_(False)
            lora = LoraConfig(r=shape.r, target_modules=MODULES, init_lora_weights=False)
            self.model = get_peft_model(base, lora, autocast_adapter_dtype=False).eval()
        weights = {name: layer.weight for name, layer in lora_layers(self.model).items()}
        for weight in weights.values():
            weight.data = weight.data.to(torch.bfloat16)
        self.sizes = {name: weight.numel() for name, weight in weights.items()}
        self.moments = Moments(
            {n: torch.randn(w.shape, device=DEVICE) * 1e-4 for n, w in weights.items()},
            {n: torch.rand(w.shape, device=DEVICE) * 1e-7 for n, w in weights.items()},
            step=50,
        )
        self.set_count(count)

    def set_count(self, count: int) -> None:
        """Set the number of examples."""
        self.lengths = [self.length] * count
        self.examples = [self._example(self.length) for _ in range(count)]

    def batches(self, tokens: int) -> list[dict[str, Tensor]]:
        """The batches of `Problem`, on the device."""
        return [
            {key: value.to(DEVICE) for key, value in batch.items()}
            for batch in super().batches(tokens)
        ]

    def floor_flops(self) -> float:
        """Floating-point operations (multiplications and additions) of the floor per example."""
        config = self.model.config
        linear = sum(
            module.weight.numel()
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and "lora_" not in name
        )
        attention = 2 * self.length**2 * config.hidden_size * config.num_hidden_layers  # causal
        return (4 * linear + 6 * sum(self.sizes.values())) * self.length + 3 * attention


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def matmul_peak(size: int, repeats: int) -> float:
    """TFLOP/s of bfloat16 matrix products; the best of three sizes."""
    best = 0.0
    for side in (size // 2, size, 2 * size):
        left, right = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
        seconds(lambda a=left, b=right: a @ b)
        taken = [
            seconds(lambda a=left, b=right: [a @ b for _ in range(10)]) for _ in range(repeats)
        ]
        best = max(best, 20 * side**3 / statistics.median(taken) / 1e12)
    return best


def best_size(run: Runner, problem: Problem, trials: list[int], limit: float) -> int:
    """The fastest batch size, in tokens, among those that fit into memory and the time limit."""
    times = {}
    start = time.perf_counter()
    for tokens in trials:
        try:
            seconds(lambda t=tokens: run(problem, t))
            times[tokens] = seconds(lambda t=tokens: run(problem, t))
        except torch.OutOfMemoryError:
            break
        if time.perf_counter() - start > limit:
            break
    if not times:
        raise torch.OutOfMemoryError(f"out of memory with {trials[0]} tokens")
    return min(times, key=times.__getitem__)


def in_turn(
    runs: Mapping[str, Runner], problem: GpuProblem, shape: argparse.Namespace
) -> dict[str, dict]:
    """Each runner's median seconds per example, or the reason for its failure."""
    sizes: dict[str, int] = {}
    found: dict[str, dict] = {}
    for name, run in runs.items():
        try:
            sizes[name] = best_size(run, problem, shape.tokens, shape.limit)
        except Exception as error:  # a peer's failure of any kind is a result
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        print(f"{name}: {found.get(name) or sizes[name]}", flush=True)
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in sizes}
    count = len(problem.lengths)
    for _ in range(shape.repeats):
        for name, tokens in sizes.items():
            if sum(times[name]) * count < shape.limit:
                taken = seconds(lambda r=runs[name], t=tokens: r(problem, t))
                times[name].append(taken / count)
    for name, values in times.items():
        found[name] = {
            "seconds_an_example": statistics.median(values),
            "spread": [min(values), max(values)],
            "turns": len(values),
            "tokens_per_batch": sizes[name],
        }
    return {name: found[name] for name in runs}


def measure(shape: argparse.Namespace, length: int, peak: float, into: dict) -> Iterator[None]:
    """Measure examples of one length; yields after each group is stored in `into`."""
    problem = GpuProblem(shape, length, shape.examples)
    sketch = extracted(Projection("sketch", shape.dim))
    own = {"floor": floor, "sketch": sketch}
    own[f"exact, {shape.subtasks} subtasks"] = exact(shape.subtasks)
    flops = problem.floor_flops()
    into |= {"values": sum(problem.sizes.values()), "floor_flops": flops, "groups": {}}
    into["groups"]["fast"] = with_shares(in_turn(own, problem, shape), flops, peak)
    yield
    if length != shape.lengths[0]:
        return
    del own  # the directions of exact mode take tens of GiB
    gc.collect()
    problem.set_count(shape.slow)
    dense = extracted(Projection("rademacher", shape.dim))
    rivals = {name: run for name, run in peers.installed().items() if name in PEERS}
    slow = {"floor": floor, "sketch": sketch, "dense signs": dense, **rivals}
    into["groups"]["slow"] = with_shares(in_turn(slow, problem, shape), flops, peak)
    yield


def with_shares(group: dict[str, dict], flops: float, peak: float) -> dict[str, dict]:
    """The measurements of a group, compared with the floor and the device's matmul peak."""
    for told in group.values():
        if "failed" not in told:
            taken = told["seconds_an_example"]
            told["times_the_floor"] = taken / group["floor"]["seconds_an_example"]
            told["tflops"] = flops / taken / 1e12
            told["share_of_peak"] = told["tflops"] / peak
    return group


def table(result: dict) -> str:
    """The result as Markdown."""
    lines = [
        "# Gradient features on a GPU",
        "",
        f"`{result['command']}`, {result['device']}, {json.dumps(result['versions'])}.",
        f"Matmul peak, measured: {result['matmul_tflops']:.1f} TFLOP/s. Medians, of one example.",
        "",
        "| tokens | group | runner | ms | times the floor | TFLOP/s | share of peak |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for length, found in result["lengths"].items():
        for group, runners in found["groups"].items():
            for name, told in runners.items():
                said = (
                    f"{told['failed']} | | |"
                    if "failed" in told
                    else f"{1000 * told['seconds_an_example']:.2f} | {told['times_the_floor']:.2f} "
                    f"| {told['tflops']:.2f} | {told['share_of_peak']:.0%}"
                )
                lines.append(f"| {length} | {group} | {name} | {said} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    defaults = {"layers": 32, "hidden": 4096, "intermediate": 11008, "heads": 32}
    defaults |= {"vocabulary": 32000, "r": 128, "dim": 8192, "subtasks": 57, "matmul": 8192}
    defaults |= {"examples": 96, "slow": 16, "repeats": 5}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--lengths", type=int, nargs="+", default=[330, 1024])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    return parser.parse_args()


def main() -> None:
    shape = parse()
    told = {name: value for name, value in vars(shape).items() if name != "out"}
    packages = ("torch", "triton", "transformers", "peft", "traker", "fast_jl", "bergson")
    result = {
        "command": f"python benchmarks/features/gpu.py {' '.join(sys.argv[1:])}",
        "settings": told,
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine(),
        "commit": commit(),
        "versions": {name: version(name) for name in packages if find_distribution(name)},
        "matmul_tflops": matmul_peak(shape.matmul, shape.repeats),
        "lengths": {},
    }
    for length in shape.lengths:
        into = result["lengths"][str(length)] = {}
        for _ in measure(shape, length, result["matmul_tflops"], into):
            shape.out.write_text(json.dumps(result, indent=1) + "\n")
            shape.out.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
