"""The update rules, on tensors that lie here: Muon's, the balanced one of embeddings, and AdamW's.

For a matrix W with gradient G Muon does (Keller Jordan, 2024; Moonlight, arXiv 2502.16982):

    M <- momentum M + G
    O  = orthogonalise(G + momentum M)      with Nesterov; orthogonalise(M) without
    W <- W (1 - lr weight_decay) - lr scale(W) O

An embedding is no map between two spaces: its rows are tokens, and most of them do not occur in a batch. So
DeepSeek-V4.1 (technical report, 2026) does not orthogonalise its momentum but balances it: rows and columns
are divided by their length in turn, as Sinkhorn's algorithm does, until every token that occurred moves as
far as any other and no channel moves much more than the rest.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from lichen.machine.accelerator import runs_triton
from lichen.machine.precision import at_least_fp32
from lichen.optim.newton_schulz import EPSILON, Form, form_for, orthogonalize, scaled
from lichen.optim.recipes import OptimizerRecipe

# Matrix entries that go through Newton-Schulz together. On a CPU the working memory should stay in the
# second-level cache; elsewhere it should fill the machine and stay small beside the model.
CHUNK_ENTRIES = {"cpu": 1 << 18}
CHUNK_ENTRIES_ELSEWHERE = 1 << 28

ITERATIONS = 11  # of balancing; odd, so that the last division makes every row's length 1
SMALLEST_ROW = 1e-3  # rows of the momentum shorter than this have seen nothing and stay

VECTOR_ENTRIES = 16  # fp32 numbers in the widest vector register of a CPU


def muon_update(
    matrices: Iterable[tuple[Tensor, ...]],
    recipe: OptimizerRecipe,
    group: dict[str, Any],
    found_inf: Tensor | None = None,
) -> None:
    """Update in place. matrices: parameter, gradient and momentum, each (matrices, *rows, columns)."""
    for chunk in chunks(matrices):
        parameters = [parameter for parameter, _, _ in chunk]
        plain = all(m.ndim == 3 and m.dtype == torch.float32 for _, _, m in chunk)
        if plain and runs_triton(parameters[0].device.type):
            from lichen.optim import update_triton

            x, form, sizes = _room(parameters)
            pairs = [(gradient, momentum) for _, gradient, momentum in chunk]
            update_triton.advance(pairs, x.split(sizes), recipe.momentum, recipe.nesterov, EPSILON, found_inf)
            steps = _orthogonalized(x, form, recipe).split(sizes)
        else:
            directions = (advance(momentum, gradient, recipe, found_inf) for _, gradient, momentum in chunk)
            steps = muon_steps(directions, parameters, recipe)
        for parameter, step in zip(parameters, steps, strict=True):
            move(parameter, step, group, found_inf)


def muon_steps(
    directions: Iterable[Tensor], like: Sequence[Tensor], recipe: OptimizerRecipe
) -> Sequence[Tensor]:
    """scale O of matrices of one shape, orthogonalised as one batch; shaped like the tensors in `like`.

    With one CPU thread their bits do not depend on the batch.

    directions: G + momentum M or M, each (matrices, *rows, columns), shaped like the tensors in `like`.
    """
    x, form, sizes = _room(like)
    for direction, slot in zip(directions, x.split(sizes), strict=True):
        # The order of a sum, so its rounding, follows the layout.
        direction = direction.contiguous().view_as(slot)
        norm = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
        torch.div(direction, norm.add_(EPSILON), out=slot)
    steps = _orthogonalized(x, form, recipe).split(sizes)
    return [step.view(each.shape) for step, each in zip(steps, like, strict=True)]


def _room(like: Sequence[Tensor]) -> tuple[Tensor, Form, list[int]]:
    """Memory for a batch of all these matrices, how to orthogonalise it, and how many are from each."""
    sizes = [matrices.size(0) for matrices in like]
    rows, columns = prod(like[0].shape[1:-1]), like[0].size(-1)
    form = form_for(like[0].device, rows, columns)
    x = torch.empty(sum(sizes), rows, columns, dtype=form.dtype, device=like[0].device)
    return x, form, sizes


def _orthogonalized(x: Tensor, form: Form, recipe: OptimizerRecipe) -> Tensor:
    schedule = scaled(recipe.ns_schedule, recipe.scale(*x.shape[1:]))
    return orthogonalize(x, schedule, together=form.together, transpose=form.transpose)


def move(parameter: Tensor, step: Tensor, group: dict[str, Any], found_inf: Tensor | None = None) -> None:
    """parameter (1 - lr weight_decay) - lr step, in fp32 or better, rounded once; where `found_inf` is not 0,
    nothing.

    The learning rate is not in `step`, whose entries fp16 can hold only while they are not small.
    """
    lr, weight_decay = group["lr"], group["weight_decay"]
    if runs_triton(parameter.device.type) and parameter.ndim == 3 and parameter.element_size() <= 4:
        from lichen.optim import update_triton

        update_triton.move(parameter, step, lr, weight_decay, found_inf)
        return
    wide = parameter.to(at_least_fp32(parameter.dtype))
    if step.device.type == "cpu":  # where arithmetic on two formats at once is slow
        step = step.to(wide.dtype)
    if found_inf is not None:
        moved = torch.add(wide * (1 - lr * weight_decay), step, alpha=-lr)
        parameter.copy_(torch.where(found_inf != 0, wide, moved))
        return
    wide.mul_(1 - lr * weight_decay).add_(step, alpha=-lr)
    if wide is not parameter:
        parameter.copy_(wide)


def advance(
    momentum: Tensor, gradient: Tensor, recipe: OptimizerRecipe, found_inf: Tensor | None = None
) -> Tensor:
    """Take `gradient` into `momentum`; returns the direction of the step, which may be `momentum` itself."""
    if found_inf is None:
        torch.add(gradient, momentum, alpha=recipe.momentum, out=momentum)
    else:
        advanced = torch.add(gradient, momentum, alpha=recipe.momentum)
        momentum.copy_(torch.where(found_inf != 0, momentum, advanced))
    return torch.add(gradient, momentum, alpha=recipe.momentum) if recipe.nesterov else momentum


def chunks(matrices: Iterable[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Tuples of tensors (matrices, *rows, columns), in lists of one shape and small enough to work on."""
    batches: dict[tuple[torch.device, torch.Size], list[tuple[Tensor, ...]]] = {}
    for tensors in matrices:
        batches.setdefault((tensors[0].device, tensors[0].shape[1:]), []).append(tensors)
    for (device, shape), batch in batches.items():
        limit = max(1, CHUNK_ENTRIES.get(device.type, CHUNK_ENTRIES_ELSEWHERE) // shape.numel())
        chunk: list[tuple[Tensor, ...]] = []
        room = limit
        for tensors in batch:
            start, count = 0, tensors[0].size(0)
            while start < count:
                stop = min(start + room, count)
                chunk.append(tuple(tensor[start:stop] for tensor in tensors))
                room -= stop - start
                start = stop
                if room == 0:
                    yield chunk
                    chunk, room = [], limit
        if chunk:
            yield chunk


def sinkhorn_step(direction: Tensor, recipe: OptimizerRecipe) -> Tensor:
    """The balanced step of an embedding (..., columns) in the direction of its momentum, fp32 or better.

    Entries of the rows that move have a root mean square of `update_rms`; the other rows are zero.
    """
    average = direction * (1 - recipe.momentum)  # the direction is a sum of gradients
    rows = average.reshape(-1, average.size(-1))
    moves = torch.linalg.vector_norm(rows, dim=1, keepdim=True) >= SMALLEST_ROW
    x = rows.where(moves, 0.0)
    for iteration in range(ITERATIONS):
        length = torch.linalg.vector_norm(x, dim=1 - iteration % 2, keepdim=True)
        x = x / length.where(length > 0, 1.0)
    return (x * x.size(1) ** 0.5).view_as(direction).mul_(recipe.update_rms or 1.0)


def adamw_update(
    tensors: Sequence[tuple[Tensor, ...]],
    recipe: OptimizerRecipe,
    group: dict[str, Any],
    found_inf: Tensor | None = None,
) -> None:
    """Update in place, to the bit however parameters are cut over ranks.

    tensors: of every parameter itself, its gradient, the exponential moving averages of its gradients and of
    their squares, fp32 or better, and the number of steps made.
    """
    parameters, gradients, averages, squares, steps = zip(*tensors, strict=True)
    fusing = _get_fused_kernels_supported_devices()
    held = (parameters, averages, squares)
    updated = [[_whole_vectors(tensor) for tensor in some] for some in held]
    adamw(
        updated[0],
        [_whole_vectors(gradient) for gradient in gradients],
        updated[1],
        updated[2],
        [],
        list(steps),
        fused=all(parameter.device.type in fusing for parameter in parameters),
        amsgrad=False,
        beta1=recipe.adamw_betas[0],
        beta2=recipe.adamw_betas[1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=recipe.adamw_eps,
        maximize=False,
        found_inf=found_inf,
    )
    for some, results in zip(held, updated, strict=True):
        for tensor, result in zip(some, results, strict=True):
            if result is not tensor:
                tensor.copy_(result.view(-1)[: tensor.numel()].view_as(tensor))


def _whole_vectors(tensor: Tensor) -> Tensor:
    """`tensor` for AdamW's kernel: fp32 or better, and flat and padded if its length asks for it.

    On a CPU the kernel rounds the entries after the last whole vector register otherwise than the rest,
    and which entries these are depends on how a parameter is cut.
    """
    missing = -tensor.numel() % VECTOR_ENTRIES if tensor.device.type == "cpu" else 0
    wide = tensor.to(at_least_fp32(tensor.dtype))
    return nn.functional.pad(wide.reshape(-1), (0, missing)) if missing else wide
