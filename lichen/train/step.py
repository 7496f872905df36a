"""One optimizer step after another.

A step takes a whole batch of `tokens_per_step` from the loader and cuts it into micro-batches that fit in
memory, on as many threads as there are. Every micro-batch's loss is divided by the targets of the whole
step, so the gradient is that of the mean over all of them, however they were cut. Then, in this order: the
gradient is clipped, checked and applied; heads with too large logits are clipped; and the routers' selection
biases move by the loads of the whole step.
"""

import math
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lichen.arch.flops import training_flops_per_token
from lichen.arch.spec import ModelSpec
from lichen.data.dataset import TokenDataset
from lichen.data.loader import Batch, Loader
from lichen.data.manifest import Split
from lichen.data.tokenizer import load_tokenizer
from lichen.errors import LichenError, NotFinite, is_out_of_memory
from lichen.machine.accelerator import Moment, is_accelerator
from lichen.machine.allocator import keep_freed_memory
from lichen.machine.precision import default_device, matmul_dtype, warn_if_emulated
from lichen.machine.rates import ceiling
from lichen.nn.router import update_selection_bias
from lichen.nn.transformer import Transformer
from lichen.ops.cross_entropy import IGNORE
from lichen.ops.native import has_kernels
from lichen.optim import Muon
from lichen.optim.qk_clip import clip
from lichen.optim.schedule import lr_factor
from lichen.serve.open import check_whole
from lichen.train import state
from lichen.train.metrics import StepMetrics, load_ratios, read_together
from lichen.train.objective import LossOutput, NextToken
from lichen.train.parallel import Threads
from lichen.train.player import Player
from lichen.train.resolve import optimizer_recipe, optimizer_table
from lichen.train.run import Run
from lichen.weights.load import check_weights, load_weights


class Trainer:
    """Model, objective, optimizer and data of a run. `step` counts the optimizer steps taken, of `steps`."""

    def __init__(self, run: Run, checkpoint: Path | None = None) -> None:
        """Begin `run`, or continue it from a verified `checkpoint`, to the last bit as if without a pause.

        Raises LichenError when the data, the weights or the checkpoint are not those of the run.
        """
        recipe = run.recipe
        self.run = run
        self.step = 0
        self.device = default_device()
        self.compute_dtype = _compute_dtype(recipe.train.dtype, self.device)
        self.dataset = _open_data(run)
        self.tokenizer = load_tokenizer(run.tokenizer)
        self.prompts = {prompt: self._prompt_ids(prompt) for prompt in recipe.sample.prompts}
        began_with_kernels = run.facts["fitted"].get("kernels", False)
        if began_with_kernels != has_kernels(self.device) and checkpoint is not None:
            warnings.warn(
                f"{run.folder} began {'with' if began_with_kernels else 'without'} the kernels "
                "that a C++ compiler makes; it goes on the other way, and so not to the bit as it began",
                stacklevel=2,
            )
        keep_freed_memory()
        state.seed_rng(recipe.train.seed)
        source = Path(recipe.model.weights) if recipe.model.weights is not None else None
        if checkpoint is not None:
            source = checkpoint / "model"
        self.model = _with_memory(run.spec, self.compute_dtype, self.device, source)
        self.rule = optimizer_recipe(recipe)
        self.optimizer = Muon(optimizer_table(self.model, recipe), self.rule)
        self.loader = self.loader_of("train", recipe.train.seed)
        mtp_weight = recipe.train.mtp_weight if run.spec.mtp else 0.0
        self.objective = NextToken(mtp_weight, routing=True, max_logits=True)
        self.flops_per_token = training_flops_per_token(run.spec, recipe.train.seq_len, mtp=mtp_weight > 0)
        if checkpoint is not None:
            state.restore(self, checkpoint)
        elif source is not None:
            check_whole(source)
            load_weights(self.model, source)
        else:
            self.model.initialize(recipe.train.seed)
        self.parallel = Threads(self.model, recipe.train.micro_batch)
        self.player = Player(self.model, self.objective)

    @property
    def steps(self) -> int:
        return self.run.recipe.train.steps

    def train_step(self) -> StepMetrics:
        """Take one optimizer step. Raises NotFinite, with nothing applied, when the loss is not finite.

        A CPU is asked for the loss before the update. An accelerator is given the whole step at once, its
        updates told to change nothing if the loss is not finite, and asked once, at the end.
        """
        train = self.run.recipe.train
        start = time.perf_counter()
        values, counts, max_logits = self._forward_backward(self.loader.next_batch())
        values["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_grad_norm)
        finite = values["loss"].isfinite() & values["grad_norm"].isfinite()
        waits = not is_accelerator(self.device)
        if waits and not finite:
            raise _not_applied({name: float(value) for name, value in values.items()})

        applied = Moment.now(self.device)
        found_inf = None if waits else (~finite).float()
        lr = self.rule.lr * self._apply_lr()
        try:
            self.optimizer.step(found_inf=found_inf)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise NotFinite(f"its update is beyond what fp32 holds, at a learning rate of {lr:g}") from error
        self.optimizer.zero_grad()
        if self.rule.qk_clip_tau is not None:
            heads = clip(self.model, max_logits, self.rule.qk_clip_tau, found_inf)
            values["clipped_heads"] = sum(heads.values(), torch.zeros((), device=self.device))
        if counts and train.bias_update_rate:
            rate = train.bias_update_rate if waits else train.bias_update_rate * finite
            update_selection_bias(self.model, counts, rate)
        if max_logits:
            values["max_logit"] = torch.stack([logits.max() for logits in max_logits.values()]).max()
        if counts:
            ratios = torch.stack(load_ratios(counts))
            values |= {"load_worst": ratios.max(), "load_mean": ratios.mean()}
        done = Moment.now(self.device)
        read: dict[str, Any] = read_together(values)
        if not (math.isfinite(read["loss"]) and math.isfinite(read["grad_norm"])):
            raise _not_applied(read)
        self.step += 1

        seconds = time.perf_counter() - start
        per_second = train.tokens_per_step / seconds
        clipped = read.pop("clipped_heads", None)
        return StepMetrics(
            step=self.step,
            tokens=self.step * train.tokens_per_step,
            lr=lr,
            seconds=seconds,
            optimizer_seconds=applied.seconds_to(done),
            tokens_per_second=per_second,
            ceiling_share=per_second * self.flops_per_token / ceiling(self.compute_dtype, self.device),
            clipped_heads=None if clipped is None else int(clipped),
            **read,
        )

    def _forward_backward(
        self, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the whole step; its losses, tokens per expert, and largest logit per head, all where
        they were computed."""
        normalizer = int((batch.targets != IGNORE).sum())

        def differentiate(model: Transformer, *rows: Tensor) -> LossOutput:
            if is_accelerator(self.device):
                return self.player(*rows, normalizer=normalizer)
            output = self.objective(model, *rows, normalizer=normalizer)
            output.loss.backward()
            return replace(output, loss=output.loss.detach())

        totals: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        max_logits: dict[str, Tensor] = {}
        for output in self.parallel.map(differentiate, columns(batch)):
            for name in ("loss", "cross_entropy", "mtp", "balance"):
                value = getattr(output, name)
                if value is not None:
                    totals[name] = totals.get(name, 0) + value
            for name, layer in output.routing.items():
                counts[name] = counts[name] + layer if name in counts else layer
            for name, layer in output.max_logits.items():
                max_logits[name] = torch.maximum(max_logits[name], layer) if name in max_logits else layer
        return totals, counts, max_logits

    def _apply_lr(self) -> float:
        recipe = self.run.recipe
        factor = lr_factor(step=self.step, steps=recipe.train.steps, **recipe.schedule.model_dump())
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor

    def loader_of(self, split: Split, seed: int) -> Loader:
        recipe = self.run.recipe
        return Loader(self.dataset, split, recipe.sequences_per_step, recipe.train.seq_len, seed)

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(prompt).ids
        context = self.run.spec.max_position_embeddings
        if not 0 < len(ids) < context:
            raise LichenError(
                f"the prompt {prompt[:40]!r} in sample.prompts has {len(ids):,} tokens; it needs at least 1 "
                f"and fewer than the model's max_position_embeddings of {context:,}"
            )
        return ids


def _with_memory(
    spec: ModelSpec, compute_dtype: torch.dtype, device: torch.device, weights: Path | None
) -> Transformer:
    """The model, uninitialised. The `weights` that it will have are compared with it before it takes memory:
    those of another model would take any amount."""
    with torch.device("meta"):
        model = Transformer(spec, compute_dtype)
    if weights is not None:
        check_weights(model, weights)
    try:
        return model.to_empty(device=device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        parameters = sum(parameter.numel() for parameter in model.parameters())
        raise LichenError(
            f"out of memory for the model itself: its {parameters:,} parameters take "
            f"{4 * parameters / 1e9:,.1f} GB in fp32, and as much again for their gradient and for each "
            "state of the optimizer; train a smaller one"
        ) from error


def columns(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.tokens, batch.targets, batch.segment_ids


def _not_applied(read: dict[str, float]) -> NotFinite:
    return NotFinite(
        f"the loss is {read['loss']:g} and the norm of its gradient {read['grad_norm']:g}; the step was not "
        "applied"
    )


def _open_data(run: Run) -> TokenDataset:
    dataset = TokenDataset.open(Path(run.recipe.data.path))
    if dataset.manifest.tokenizer_hash != run.manifest.tokenizer_hash:
        raise LichenError(
            f"the data in {dataset.folder} have another tokenizer than the run {run.folder}; prepare them "
            f"again with --tokenizer {run.tokenizer}"
        )
    if dataset.manifest.shards != run.manifest.shards:
        raise LichenError(
            f"the data in {dataset.folder} are not those that the run {run.folder} began with; write the "
            f"path of those into {run.folder / 'recipe.toml'}, or begin a new run"
        )
    return dataset


def _compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    dtype = {"auto": matmul_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}[wanted]
    if dtype != torch.float32:
        warn_if_emulated(dtype, device, 'train.dtype = "fp32" is faster')
    return dtype
