"""One optimizer step after another: the state of a training run and what can be done with it.

A step takes a whole batch of `tokens_per_step` from the loader and cuts it into micro-batches that fit in
memory, on as many threads as there are. Every micro-batch's loss is divided by the targets of the whole
step, so the gradient is that of the mean over all of them, however they were cut. Then, in this order: the
gradient is clipped, checked and applied; heads with too large logits are clipped; and the routers' selection
biases move by the loads of the whole step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lichen.arch.flops import training_flops_per_token
from lichen.data.dataset import TokenDataset
from lichen.data.loader import Batch, Loader
from lichen.data.manifest import Split
from lichen.data.tokenizer import load_tokenizer
from lichen.errors import LichenError
from lichen.files import write_text
from lichen.machine.allocator import keep_freed_memory
from lichen.machine.precision import matmul_dtype
from lichen.machine.rates import matrix_rate
from lichen.nn.router import update_selection_bias
from lichen.nn.transformer import Transformer
from lichen.ops.cross_entropy import IGNORE
from lichen.optim import Muon, qk_clip
from lichen.optim.schedule import lr_factor
from lichen.serve.detokenizer import stream_text
from lichen.serve.generate import generate
from lichen.serve.sampling import SamplingParams
from lichen.train.checkpoint import (
    FORMAT_VERSION,
    check_format_version,
    restore_rng,
    rng_state,
    save_checkpoint,
    seed_rng,
)
from lichen.train.metrics import Sample, StepMetrics, load_balance
from lichen.train.objective import LossOutput, NextToken
from lichen.train.replicas import Replicas
from lichen.train.run import Run, default_device, optimizer_recipe, optimizer_table
from lichen.train.trained import check_tokenizer, end_ids
from lichen.weights.folder import Outgoing, write_file
from lichen.weights.load import load_weights
from lichen.weights.save import save_weights


class Diverged(LichenError):
    """The loss or its gradient is no longer finite."""


class Trainer:
    """Model, optimizer, data and step of a run. `step` counts the optimizer steps taken."""

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
        keep_freed_memory()
        seed_rng(recipe.train.seed)
        with self.device:
            self.model = Transformer(run.spec, self.compute_dtype)
        self.rule = optimizer_recipe(recipe)
        self.optimizer = Muon(optimizer_table(self.model, recipe), self.rule)
        self.loader = self._loader("train", recipe.train.seed)
        self.mtp_weight = recipe.train.mtp_weight if run.spec.mtp else 0.0
        self.flops_per_token = training_flops_per_token(
            run.spec, recipe.train.seq_len, mtp=self.mtp_weight > 0
        )
        if checkpoint is not None:
            self._restore(checkpoint)
        elif recipe.model.weights is not None:
            load_weights(self.model, Path(recipe.model.weights))
        else:
            self.model.initialize(recipe.train.seed)
        self.replicas = Replicas(self.model, recipe.train.micro_batch)

    # ------------------------------------------------------------------------------------------ training

    def train_step(self) -> StepMetrics:
        """Take one optimizer step. Raises Diverged, with nothing applied, when the loss is not finite."""
        train = self.run.recipe.train
        start = time.perf_counter()
        totals, counts, max_logits = self._forward_backward(self.loader.next_batch())
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_grad_norm))
        if not math.isfinite(totals["loss"]) or not math.isfinite(grad_norm):
            raise Diverged(
                f"step {self.step + 1}: the loss is {totals['loss']:g} and the norm of its gradient "
                f"{grad_norm:g}; the step was not applied"
            )

        applied = time.perf_counter()
        lr = self.rule.lr * self._apply_lr()
        self.optimizer.step()
        self.optimizer.zero_grad()
        clipped = None
        if self.rule.qk_clip_tau is not None:
            clipped = sum(qk_clip(self.model, max_logits, self.rule.qk_clip_tau).values())
        if counts and train.bias_update_rate:
            update_selection_bias(self.model, counts, train.bias_update_rate)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.step += 1

        seconds = time.perf_counter() - start
        rate = train.tokens_per_step / seconds
        worst, mean = load_balance(counts)
        return StepMetrics(
            step=self.step,
            tokens=self.step * train.tokens_per_step,
            loss=totals["loss"],
            cross_entropy=totals["cross_entropy"],
            mtp=totals.get("mtp"),
            balance=totals.get("balance"),
            lr=lr,
            grad_norm=grad_norm,
            seconds=seconds,
            optimizer_seconds=time.perf_counter() - applied,
            tokens_per_second=rate,
            ceiling_share=rate * self.flops_per_token / matrix_rate(self.compute_dtype, self.device),
            load_worst=worst,
            load_mean=mean,
            max_logit=max((float(logits.max()) for logits in max_logits.values()), default=None),
            clipped_heads=clipped,
        )

    def _forward_backward(
        self, batch: Batch
    ) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the whole step; its losses, tokens per expert, and largest logit per head."""
        normalizer = int((batch.targets != IGNORE).sum())

        objective = NextToken(self.mtp_weight, max_logits=True)

        def differentiate(model: Transformer, *rows: Tensor) -> LossOutput:
            output = objective(model, *rows, normalizer=normalizer)
            output.loss.backward()
            return replace(output, loss=output.loss.detach())

        totals: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        max_logits: dict[str, Tensor] = {}
        for output in self.replicas.map(differentiate, _columns(batch)):
            for name in ("loss", "cross_entropy", "mtp", "balance"):
                value = getattr(output, name)
                if value is not None:
                    totals[name] = totals.get(name, 0) + value
            for name, layer in output.routing.items():
                counts[name] = counts[name] + layer if name in counts else layer
            for name, layer in output.max_logits.items():
                max_logits[name] = torch.maximum(max_logits[name], layer) if name in max_logits else layer
        return {name: float(total) for name, total in totals.items()}, counts, max_logits

    def _apply_lr(self) -> float:
        recipe = self.run.recipe
        factor = lr_factor(step=self.step, steps=recipe.train.steps, **recipe.schedule.model_dump())
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return factor

    def _loader(self, split: Split, seed: int) -> Loader:
        recipe = self.run.recipe
        return Loader(self.dataset, split, recipe.sequences_per_step, recipe.train.seq_len, seed)

    # ---------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> tuple[float, float] | None:
        """(nats per target, bits per UTF-8 byte) on the same validation text every time.

        Reads the whole split, or batches until `eval.tokens` are seen. None when the data has no validation
        split.
        """
        if not self.dataset.manifest.splits["validation"].documents:
            return None

        objective = NextToken()

        @torch.no_grad()
        def score(model: Transformer, *rows: Tensor) -> float:
            return float(objective(model, *rows, normalizer=1).cross_entropy)

        nats, targets, text_bytes = 0.0, 0, 0
        for batch in self._loader("validation", seed=0).batches():
            nats += sum(self.replicas.map(score, _columns(batch)))
            targets += int((batch.targets != IGNORE).sum())
            text_bytes += batch.n_bytes
            if targets >= self.run.recipe.eval.tokens:
                break
        return nats / targets, nats / math.log(2) / text_bytes

    def sample(self) -> tuple[Sample, ...]:
        """One continuation of each of the recipe's prompts; each draws from the same seed."""
        chosen, ends = self.run.recipe.sample, end_ids(self.dataset.special_ids)
        params = SamplingParams(
            temperature=chosen.temperature, seed=chosen.seed, max_tokens=chosen.max_tokens
        )
        samples = []
        for prompt, ids in self.prompts.items():
            tokens = generate(self.model, ids, params, eos_ids=ends)
            samples.append(Sample(prompt, "".join(stream_text(tokens, self.tokenizer))))
        return tuple(samples)

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(prompt).ids
        context = self.run.spec.max_position_embeddings
        if not 0 < len(ids) < context:
            raise LichenError(
                f"the prompt {prompt[:40]!r} in sample.prompts has {len(ids):,} tokens; it needs at least 1 "
                f"and fewer than the model's max_position_embeddings of {context:,}"
            )
        return ids

    # --------------------------------------------------------------------------------------- checkpoints

    def save(self) -> Path:
        """Write a checkpoint of this step; it is durable when this returns."""

        def write(folder: Path) -> None:
            write_text(folder / "model" / "config.json", (self.run.folder / "config.json").read_text("utf-8"))
            save_weights(self.model, folder / "model", torch.float32)
            write_file(folder / "optimizer.safetensors", _optimizer_tensors(self.optimizer.named_state()))
            state = {
                "format_version": FORMAT_VERSION,
                "step": self.step,
                "tokenizer_hash": self.run.manifest.tokenizer_hash,
                "loader": self.loader.state(),
                "rng": rng_state(),
            }
            write_text(folder / "state.json", json.dumps(state) + "\n")

        return save_checkpoint(self.run.checkpoints, self.step, self.run.recipe.checkpoint.keep, write)

    def _restore(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / "state.json").read_bytes())
        check_format_version(state["format_version"], checkpoint)
        check_tokenizer(self.run, checkpoint)
        load_weights(self.model, checkpoint / "model")
        # Learning rates and the like come from the recipe; the checkpoint brings only what was learnt.
        groups = self.optimizer.state_dict()["param_groups"]
        saved = _optimizer_state(load_file(checkpoint / "optimizer.safetensors"))
        self.optimizer.load_state_dict({"state": saved, "param_groups": groups})
        self.loader.restore(state["loader"])
        restore_rng(state["rng"])
        self.step = state["step"]


# ------------------------------------------------------------------------------------------------ details


def _open_data(run: Run) -> TokenDataset:
    dataset = TokenDataset.open(Path(run.recipe.data.path))
    if dataset.manifest.tokenizer_hash != run.manifest.tokenizer_hash:
        raise LichenError(
            f"the data in {dataset.folder} have another tokenizer than the run {run.folder}; prepare them "
            f"again with --tokenizer {run.tokenizer}"
        )
    return dataset


def _columns(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.tokens, batch.targets, batch.segment_ids


def _compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    return {"auto": matmul_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}[wanted]


def _optimizer_tensors(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Outgoing]:
    return {
        f"{name}.{key}": Outgoing(tensor, tensor.dtype)
        for name, entry in state.items()
        for key, tensor in entry.items()
    }


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for dotted, tensor in tensors.items():
        name, _, key = dotted.rpartition(".")
        state.setdefault(name, {})[key] = tensor
    return state
