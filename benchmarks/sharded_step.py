"""Muon on a model that FSDP2 shards: time and communication of a step, beside AdamW on the same model.

    torchrun --nproc-per-node 2 -m benchmarks.sharded_step [--steps 5]

A small mixture of experts on CPU processes (gloo) or GPUs (NCCL). The bytes of FSDP2 itself are computed:
it gathers every parameter before the forward and before the backward pass and scatters the sums of the
gradients, all fp32 here, each time (ranks - 1) times the model. What the optimizer sends is counted.

A last line is about overlap: the model in small waves, so that there are several as in a large model, with
exchanges under way while matrices are computed, and, in turn, with every exchange waited for at once.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, OptimizerRecipe, owners, parameter_table, recipes
from lichen.train.objective import NextToken

ATTENTION = MLA(
    4,
    q_lora_rank=64,
    kv_lora_rank=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    rope=Rope(10000.0, interleaved=True),
)
EXPERTS = MoE(Router(8, num_experts_per_tok=2), moe_intermediate_size=64, n_shared_experts=1)
SPEC = ModelSpec(
    family="deepseek_v3",
    vocab_size=512,
    hidden_size=128,
    layers=(LayerSpec(ATTENTION, Dense(352)), *(LayerSpec(ATTENTION, EXPERTS),) * 3),
    max_position_embeddings=128,
)


WAVE_ENTRIES = 1 << 15


class WaitedFor(owners.Transfer):
    """An exchange that is over before anything else begins."""

    def __init__(self, outgoing: owners.Messages, incoming: owners.Messages) -> None:
        super().__init__(outgoing, incoming)
        self.finish()
        self.work = []


def sharded_model(device: torch.device) -> Transformer:
    """The model, each layer's parameters cut over all ranks; it knows nothing of it."""
    model = Transformer(SPEC)
    model.initialize(0)
    model.to(device)
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer)
    fully_shard(model)
    return model


def now(device: torch.device) -> float:
    """Milliseconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return 1e3 * time.perf_counter()


def train_step(model: Transformer, optimizer: Muon, generator: torch.Generator) -> float:
    """One step on a batch of this rank's own; returns the optimizer's milliseconds."""
    device = next(model.parameters()).device
    tokens = torch.randint(SPEC.vocab_size, (2, 128), generator=generator).to(device)
    optimizer.zero_grad()
    loss: Tensor = NextToken(routing=True)(model, tokens, tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    start = now(device)
    optimizer.step()
    return now(device) - start


def measure(recipe: OptimizerRecipe, device: torch.device, steps: int) -> None:
    model = sharded_model(device)
    optimizer = Muon(parameter_table(model), recipe)
    generator = torch.Generator().manual_seed(dist.get_rank())
    times = [train_step(model, optimizer, generator) for _ in range(steps + 1)]
    totals = torch.tensor([optimizer.sent_bytes, optimizer.state_bytes()], device=device)
    dist.all_reduce(totals)
    sent, state = totals.tolist()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    fsdp = 3 * (dist.get_world_size() - 1) * 4 * parameters
    if dist.get_rank() == 0:
        print(
            f"{recipe.name:13} {parameters:,} parameters   FSDP2 {fsdp / 1e6:.2f} MB a step   optimizer "
            f"{sent / 1e6:.2f} MB (+{100 * sent / max(fsdp, 1):.1f} %)   state {state / 1e6:.2f} MB   "
            f"optimizer step {median(times[1:]):.1f} ms"
        )


def measure_overlap(recipe: OptimizerRecipe, device: torch.device, steps: int) -> None:
    model = sharded_model(device)
    optimizer = Muon(parameter_table(model), recipe)
    generator = torch.Generator().manual_seed(dist.get_rank())
    times: dict[type[owners.Transfer], list[float]] = {owners.Transfer: [], WaitedFor: []}
    for _ in range(steps + 1):
        for transfer in times:
            with patch.multiple(owners, Transfer=transfer, WAVE_ENTRIES=WAVE_ENTRIES):
                times[transfer].append(train_step(model, optimizer, generator))
    overlapped, apart = (median(each[1:]) for each in times.values())
    if dist.get_rank() == 0:
        print(
            f"{recipe.name} in waves of {WAVE_ENTRIES:,} entries: optimizer step {overlapped:.1f} ms, "
            f"each exchange waited for at once {apart:.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps; the median counts")
    steps = parser.parse_args().steps
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    dist.init_process_group()
    device = torch.device("cpu")
    if accelerator is not None:
        device = torch.device(accelerator.type, dist.get_rank() % torch.accelerator.device_count())
        torch.accelerator.set_device_index(device.index)
    for recipe in (recipes.adamw, recipes.moonlight, recipes.deepseek_v4_1):
        measure(recipe, device, steps)
    measure_overlap(recipes.moonlight, device, steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
