"""What the processes of `test_sharded.py` do: every case on sharded parameters, beside the plain ones.

Every rank also takes the step of a single process on whole tensors and compares its shards bit by bit.
"""

import copy
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.machine.precision import matmul_dtype
from lichen.nn.roles import Role
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, OptimizerRecipe, ParameterTable, owners, parameter_table, qk_clip, recipes
from lichen.optim.shards import local, place_like
from lichen.optim.table import Row
from lichen.train.objective import NextToken

# Sizes that no number of ranks divides are among them, and dimensions smaller than the number of ranks.
PARAMETERS: dict[str, tuple[tuple[int, ...], Role]] = {
    "square": ((48, 48), Role("matrix")),
    "wide": ((17, 133), Role("matrix")),
    "tall": ((130, 34), Role("matrix", splits=(66, 64))),
    "heads": ((60, 40), Role("matrix", heads=3)),
    "small": ((7, 40), Role("matrix")),
    "low": ((3, 50), Role("matrix")),
    "experts": ((6, 32, 20), Role("matrix", splits=(16, 16))),
    "interleaved": ((3, 32, 24), Role("matrix", splits=(16, 16), groups=16)),
    "head by head": ((36, 26), Role("matrix", splits=(12, 12, 12), groups=3, heads=3)),
    "groups": ((42, 18), Role("matrix", splits=(24, 12, 6), groups=2)),
    "columns": ((5, 24, 18), Role("matrix", layout="columns")),
    "stack of stacks": ((2, 3, 16, 21), Role("matrix")),
    "kernel": ((10, 3, 3, 3), Role("matrix", layout="kernel")),
    "kernel columns": ((14, 3, 5), Role("matrix", heads=3, layout="kernel_columns")),
    "embedding": ((37, 16), Role("embedding")),
    "norm": ((19,), Role("norm")),
    "bias": ((3,), Role("bias")),
}
RECIPE = replace(recipes.moonlight, lr=0.01)
BALANCED = replace(recipes.deepseek_v4_1, lr=0.01)


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Step 0: parameters. From step 1 on: gradients."""
    return {
        name: random(shape, 100 * step + number).to(dtype)
        for number, (name, (shape, _)) in enumerate(PARAMETERS.items())
    }


Place = Callable[[str, Tensor], Tensor]


def optimizer_of(place: Place, recipe: OptimizerRecipe, dtype: torch.dtype = torch.float32) -> Muon:
    rows = [
        Row(name, nn.Parameter(place(name, tensor)), PARAMETERS[name][1])
        for name, tensor in tensors(0, dtype).items()
    ]
    return Muon(ParameterTable(tuple(rows)), recipe)


def parameters_of(optimizer: Muon) -> dict[str, Tensor]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def advance(optimizer: Muon, place: Place, steps: Iterable[int]) -> None:
    for step in steps:
        for name, parameter in parameters_of(optimizer).items():
            gradient = tensors(step, parameter.dtype)[name]
            parameter.grad = None if name == "small" and step == 1 else place(name, gradient)
        optimizer.step()


def plain(_: str, tensor: Tensor) -> Tensor:
    return tensor.clone()


def different(ours: Muon, reference: Muon, place: Place) -> list[str]:
    """Names of parameters and state that are not, bit by bit, shards of the reference's."""
    found = []
    expected = parameters_of(reference)
    for name, parameter in parameters_of(ours).items():
        pairs = {name: (parameter.detach(), expected[name].detach())}
        for key, tensor in ours.state[parameter].items():
            pairs[f"{key} of {name}"] = (tensor, reference.state[expected[name]][key])
        for label, (mine, whole) in pairs.items():
            wanted = whole if whole.ndim == 0 else place(name, whole)
            if not torch.equal(local(mine), local(wanted)):
                found.append(label)
    return found


def placed(mesh: DeviceMesh, *placements: Placement) -> Place:
    """Shards as `placements` say; a dimension that a parameter lacks is replicated."""

    def place(_: str, tensor: Tensor) -> Tensor:
        fitting = [
            placement if not isinstance(placement, Shard) or placement.dim < tensor.ndim else Replicate()
            for placement in placements
        ]
        return distribute_tensor(tensor, mesh, fitting)

    return place


def sent(optimizer: Muon) -> int:
    total = torch.tensor(optimizer.sent_bytes)
    dist.all_reduce(total)
    return int(total)


def step_case(place: Place, recipe: OptimizerRecipe, dtype: torch.dtype = torch.float32) -> list[str]:
    ours, reference = optimizer_of(place, recipe, dtype), optimizer_of(plain, recipe, dtype)
    advance(ours, place, (1, 2))
    advance(reference, plain, (1, 2))
    return different(ours, reference, place)


def bytes_case(mesh: DeviceMesh) -> list[str]:
    """Bytes of single matrices, counted by hand; updates travel in bf16 where the machine multiplies it."""
    b = matmul_dtype("cpu").itemsize
    one = mesh.ndim == 1
    ranks = mesh.size()
    shards, groups = (ranks, 1) if one else (mesh.size(1), mesh.size(0))
    cut = (Shard(0),) if one else (Replicate(), Shard(0))
    whole = (Replicate(),) * mesh.ndim
    n = 32 * 64
    expected = {
        "cut": (cut, (32, 64), 4 * (n - n // shards) + b * (groups * n - n // shards)),
        "cut, fp32": (cut, (8, 64), 4 * (512 - 512 // shards) + 4 * (groups * 512 - 512 // shards)),
        "replicated": (whole, (32, 64), b * (ranks - 1) * n),
        "experts": (cut, (4, 32, 64), b * 4 * (groups - 1) * n),
    }
    found = []
    for label, (placements, shape, count) in expected.items():
        parameter = nn.Parameter(distribute_tensor(random(shape, 0), mesh, placements))
        optimizer = Muon(ParameterTable((Row("w", parameter, Role("matrix")),)), RECIPE)
        parameter.grad = distribute_tensor(random(shape, 1), mesh, placements)
        optimizer.step()
        if sent(optimizer) != count:
            found.append(f"{label}: {sent(optimizer)} bytes, not {count}")
    return found


ATTENTION = MLA(
    4,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    rope=Rope(10000.0, interleaved=True),
)
ROUTER = Router(n_routed_experts=6, num_experts_per_tok=2)
MODEL = ModelSpec(
    family="deepseek_v3",
    vocab_size=50,
    hidden_size=32,
    layers=(
        LayerSpec(ATTENTION, Dense(48)),
        LayerSpec(ATTENTION, MoE(moe_intermediate_size=24, n_shared_experts=1, router=ROUTER)),
    ),
    max_position_embeddings=64,
)


def model_of() -> Transformer:
    model = Transformer(MODEL)
    model.initialize(0)
    return model


def sharded_model() -> Transformer:
    model = model_of()
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer)
    fully_shard(model)
    return model


def largest(max_logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maximum over all ranks."""
    logits: dict[str, Tensor] = {}
    for name, here in max_logits.items():
        everyone = [torch.empty_like(here) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, here.contiguous())
        logits[name] = torch.stack(everyone).amax(0)
    return logits


def copies_case() -> list[str]:
    """QK-clip of a model in DistributedDataParallel, every rank with its own batch: copies stay alike."""
    ours, reference = model_of(), model_of()
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(dist.get_rank()))
    here = NextToken(max_logits=True)(ours, tokens, tokens).max_logits
    logits = largest(here)
    tau = float(torch.cat(list(logits.values())).median())
    clipped = qk_clip(nn.parallel.DistributedDataParallel(ours), here, tau)
    found = [] if clipped == qk_clip(reference, logits, tau) and sum(clipped.values()) else ["heads clipped"]
    pairs = zip(ours.named_parameters(), reference.parameters(), strict=True)
    return found + [name for (name, mine), theirs in pairs if not torch.equal(mine, theirs)]


def model_case() -> list[str]:
    """A step of a model under `fully_shard`, every rank with its own batch, and QK-clip after it."""
    recipe = replace(recipes.muonclip, lr=0.01)
    ours, reference = sharded_model(), model_of()
    optimizer, plain_optimizer = Muon(parameter_table(ours), recipe), Muon(parameter_table(reference), recipe)
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(dist.get_rank()))
    output = NextToken(routing=True, max_logits=True)(ours, tokens, tokens)
    output.loss.backward()
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        theirs.grad = mine.grad.full_tensor()
    optimizer.step()
    plain_optimizer.step()
    logits = largest(output.max_logits)
    tau = float(torch.cat(list(logits.values())).median())
    clipped = qk_clip(ours, output.max_logits, tau)
    found = [] if clipped == qk_clip(reference, logits, tau) and sum(clipped.values()) else ["heads clipped"]
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        if not torch.equal(parameter.full_tensor(), expected[name]):
            found.append(name)
    return found


def states(optimizer: Muon) -> dict[str, object]:
    return {"parameters": parameters_of(optimizer), "optimizer": optimizer.named_state()}


def save(optimizer: Muon, folder: Path) -> None:
    dcp.save(states(optimizer), checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(optimizer: Muon, folder: Path) -> None:
    """Fill parameters and state in place, whatever number of processes saved them."""
    optimizer.initialize_state()
    dcp.load(states(optimizer), checkpoint_id=folder, no_dist=not dist.is_initialized())


def saving_case(place: Place, folder: Path) -> list[str]:
    optimizer = optimizer_of(place, RECIPE)
    advance(optimizer, place, (1, 2))
    save(optimizer, folder)
    return []


def resuming_case(place: Place, folder: Path, onwards: Path, *, steps: int) -> list[str]:
    """The last of `steps` steps, after the others were made and saved elsewhere."""
    ours, reference = optimizer_of(place, RECIPE), optimizer_of(plain, RECIPE)
    load(ours, folder)
    advance(ours, place, (steps,))
    advance(reference, plain, range(1, steps + 1))
    save(ours, onwards)
    return different(ours, reference, place)


def whole_state_case(place: Place) -> list[str]:
    """The state of a single process goes into a sharded optimizer, and back."""
    ours, reference, again = (optimizer_of(p, RECIPE) for p in (place, plain, plain))
    advance(reference, plain, (1, 2))
    ours.load_state_dict(reference.state_dict())
    again.load_state_dict(ours.state_dict())
    for name, parameter in parameters_of(again).items():
        parameter.data.copy_(parameters_of(reference)[name])
        parameters_of(ours)[name].data.copy_(place(name, parameter.detach()))
    return different(ours, reference, place) + different(again, reference, plain)


def rank_0_state_case() -> list[str]:
    """PyTorch's own functions give the whole state to rank 0, and take it from there."""
    ours, again = sharded_model(), sharded_model()
    optimizer, other = (Muon(parameter_table(model), RECIPE) for model in (ours, again))
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(dist.get_rank()))
    NextToken(routing=True)(ours, tokens, tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    giving = StateDictOptions(full_state_dict=True, cpu_offload=True)
    taking = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state = get_optimizer_state_dict(ours, optimizer, options=giving)
    set_optimizer_state_dict(again, other, state, options=taking)
    found = [] if bool(state) == (dist.get_rank() == 0) else ["the state is not rank 0's"]
    loaded = other.named_state()
    for name, saved in optimizer.named_state().items():
        for key, tensor in saved.items():
            if not torch.equal(local(loaded[name][key]), local(tensor)):
                found.append(f"{key} of {name}")
    return found


def several_meshes(square: DeviceMesh, line: DeviceMesh) -> Place:
    """Parameters in turn on the rows, on the columns and on the whole of a square of ranks."""
    places = [placed(mesh, Shard(0)) for mesh in (square["shard"], square["replicate"], line)]
    return lambda name, tensor: places[list(PARAMETERS).index(name) % 3](name, tensor)


def some_ranks_case(line: DeviceMesh, square: DeviceMesh) -> list[str]:
    """Between the parameters of all ranks lie some that ranks 2 and 3 do not have."""
    part = square["shard"]
    rows: list[tuple[Row, Row]] = []
    for number, mesh in enumerate([line] * 4 + [part] * 3 + [square] * 3):
        if mesh is part and dist.get_rank() > 1:
            continue
        tensor = random((40, 30 + number), number)
        parameter = nn.Parameter(placed(mesh, Shard(0), *(Replicate(),) * (mesh.ndim - 1))("", tensor))
        rows.append(
            tuple(Row(f"{number}", each, Role("matrix")) for each in (parameter, nn.Parameter(tensor)))
        )
    ours, reference = (Muon(ParameterTable(each), RECIPE) for each in zip(*rows, strict=True))
    for mine, theirs in rows:
        theirs.parameter.grad = random(tuple(theirs.parameter.shape), 7)
        mine.parameter.grad = place_like(theirs.parameter.grad, mine.parameter)
    ours.step()
    reference.step()
    return [m.name for m, t in rows if not torch.equal(m.parameter.full_tensor(), t.parameter)]


def cases(world: int, folder: Path) -> dict[str, Callable[[], list[str]]]:
    line = init_device_mesh("cpu", (world,))
    rows, columns, copies = placed(line, Shard(0)), placed(line, Shard(1)), placed(line, Replicate())

    def mixed(name: str, tensor: Tensor) -> Tensor:
        """Experts by expert, some matrices by rows, some by columns, some replicated."""
        number = list(PARAMETERS).index(name)
        return (rows if tensor.ndim > 2 else (rows, columns, copies)[number % 3])(name, tensor)

    found: dict[str, Callable[[], list[str]]] = {
        "replicated": lambda: step_case(copies, RECIPE),
        "sharded by rows": lambda: step_case(rows, RECIPE),
        "sharded by columns": lambda: step_case(columns, RECIPE),
        "mixed placements": lambda: step_case(mixed, RECIPE),
        "balanced embeddings and heads": lambda: step_case(mixed, BALANCED),
        "bf16 parameters": lambda: step_case(rows, RECIPE, torch.bfloat16),
        "fp64 parameters": lambda: step_case(mixed, BALANCED, torch.float64),
        "bytes": lambda: bytes_case(line),
        "owners": lambda: owners_case(line),
        "overlap": lambda: overlap_case(line),
        "model": model_case,
        "copies of a model": copies_case,
        "state of one process": lambda: whole_state_case(mixed),
        "state of rank 0": rank_0_state_case,
    }
    if world == 2:
        found["saved"] = lambda: saving_case(rows, folder / "by 2")
    if world == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        found |= {
            "resumed": lambda: resuming_case(mixed, folder / "by 2", folder / "by 4", steps=3),
            "replicated and sharded": lambda: step_case(placed(square, Replicate(), Shard(0)), RECIPE),
            "sharded twice": lambda: step_case(placed(square, Shard(0), Shard(1)), RECIPE),
            "sharded twice by rows": lambda: step_case(placed(square, Shard(0), Shard(0)), RECIPE),
            "several meshes": lambda: step_case(several_meshes(square, line), RECIPE),
            "parameters of some ranks": lambda: some_ranks_case(line, square),
            "bytes with replicas": lambda: bytes_case(square),
            "tensor parallel": lambda: tensor_parallel_case(square),
        }
    return found


def owners_case(mesh: DeviceMesh) -> list[str]:
    """Every rank finds the same owners, and no owner has much more to do than another."""
    place = placed(mesh, Shard(0))
    shapes = [(64, 64)] * 5 + [(64, 256)] * 3 + [(16, 16)] * 9 + [(33, 500)]
    jobs = [
        owners.Job(
            place("", torch.zeros(shape)), torch.empty(0), True, torch.float32, min(shape) ** 2 * max(shape)
        )
        for shape in shapes
    ]
    planned = owners.plan(jobs, mesh)
    mine = torch.tensor([[matrix.job, matrix.owner] for matrix in planned])
    first = mine.clone()
    dist.broadcast(first, 0)
    load = [0.0] * mesh.size()
    for matrix in planned:
        load[matrix.owner] += jobs[matrix.job].work
    largest = max(job.work for job in jobs)
    bound = max(largest, 4 / 3 * sum(load) / mesh.size())  # Graham, 1969, for this way of assigning
    found = [] if torch.equal(mine, first) else ["owners differ between ranks"]
    return found if max(load) <= bound else [*found, f"unequal: {load}"]


def overlap_case(mesh: DeviceMesh) -> list[str]:
    """While a wave is computed, the next one's directions and the updates of those before are under way."""
    events: list[str] = []

    class Recorded(owners.Transfer):
        def __init__(self, outgoing: owners.Messages, incoming: owners.Messages) -> None:
            super().__init__(outgoing, incoming)
            events.append("begun")

        def finish(self) -> None:
            events.append("finished")
            super().finish()

    def compute(owned: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        under_way.append(events.count("begun") - events.count("finished"))
        return [whole for _, whole in owned]

    under_way: list[int] = []
    place = placed(mesh, Shard(0))
    matrices = [place("", random((60, 60), number)) for number in range(5 * mesh.size())]
    jobs = [owners.Job(matrix, matrix.to_local(), True, torch.float32, 1.0) for matrix in matrices]
    with patch.object(owners, "Transfer", Recorded):
        updates, _ = owners.updates_by_owners(jobs, compute)  # five of 3600 entries an owner: four waves
    found = [] if under_way == [1 + 0, 1 + 1, 1 + 2, 0 + 3] else [f"under way: {under_way}"]
    same = all(torch.equal(update, job.direction) for update, job in zip(updates, jobs, strict=True))
    return found if same else [*found, "updates"]


def tensor_parallel_case(mesh: DeviceMesh) -> list[str]:
    """`fully_shard` on top of tensor parallelism, which cut the same rows before, and columns."""
    layers = OrderedDict(up=nn.Linear(24, 50, bias=False), down=nn.Linear(50, 24, bias=False))
    ours, reference = nn.Sequential(layers), copy.deepcopy(nn.Sequential(layers))
    for name, parameter in reference.named_parameters():
        parameter.data.copy_(random(tuple(parameter.shape), len(name)))
    ours.load_state_dict(reference.state_dict())
    parallelize_module(ours, mesh["shard"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(ours, mesh=mesh["replicate"])
    both_matrices = [("*", Role("matrix"))]  # not an output layer, which AdamW updates
    optimizer, plain_optimizer = (
        Muon(parameter_table(model, both_matrices), RECIPE) for model in (ours, reference)
    )
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        theirs.grad = random(tuple(theirs.shape), 7)
        mine.grad = place_like(theirs.grad, mine)
    optimizer.step()
    plain_optimizer.step()
    found = []
    above, below = mesh.get_coordinate()
    for dim, mine, theirs in zip((0, 1), ours.parameters(), reference.parameters(), strict=True):
        wanted = theirs.chunk(2, dim)[below].chunk(2, 0)[above]
        if not torch.equal(mine.to_local(), wanted):
            found.append("rows" if dim == 0 else "columns")
    return found


def run(rank: int, world: int, folder: Path) -> None:
    """One process: writes {case: what is different} to `folder`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    owners.WAVE_ENTRIES = 4000  # several waves
    results = {name: case() for name, case in cases(world, folder).items()}
    (folder / f"{world}.{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def run_alone(folder: Path) -> None:
    """What 2 and then 4 processes left goes on in one, without torch.distributed."""
    torch.set_num_threads(1)
    results = {"resumed": resuming_case(plain, folder / "by 4", folder / "by 1", steps=4)}
    (folder / "1.0.json").write_text(json.dumps(results))


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for size in (2, 4):
        torch.multiprocessing.spawn(run, (size, directory), nprocs=size)
    run_alone(directory)
