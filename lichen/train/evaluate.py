"""How good a model is while it trains: its loss on held-out text, and what it writes."""

import math

import torch
from torch import Tensor

from lichen.data.tokenizer import end_ids
from lichen.errors import NotFinite
from lichen.nn.transformer import Transformer
from lichen.ops.cross_entropy import IGNORE
from lichen.serve.detokenizer import stream_text
from lichen.serve.generate import generate
from lichen.serve.sampling import SamplingParams
from lichen.train.metrics import Sample
from lichen.train.objective import NextToken
from lichen.train.step import Trainer, columns


def evaluate(trainer: Trainer) -> tuple[float, float] | None:
    """(nats per target, bits per UTF-8 byte) on the same validation text every time.

    Reads the whole split, or batches until `eval.tokens` are seen. None when the data has no validation
    split. Raises NotFinite when the loss is not.
    """
    if not trainer.dataset.manifest.splits["validation"].documents:
        return None
    objective = NextToken()

    @torch.no_grad()
    def score(model: Transformer, *rows: Tensor) -> float:
        return float(objective(model, *rows, normalizer=1).cross_entropy)

    nats, targets, text_bytes = 0.0, 0, 0
    for batch in trainer.loader_of("validation", seed=0).batches():
        nats += sum(trainer.parallel.map(score, columns(batch)))
        targets += int((batch.targets != IGNORE).sum())
        text_bytes += batch.n_bytes
        if targets >= trainer.run.recipe.eval.tokens:
            break
    if not math.isfinite(nats):
        raise NotFinite(f"after it the validation loss is {nats:g}")
    return nats / targets, nats / math.log(2) / text_bytes


def samples(trainer: Trainer) -> tuple[Sample, ...]:
    """One continuation of each of the recipe's prompts; each draws from the same seed."""
    chosen, ends = trainer.run.recipe.sample, end_ids(trainer.dataset.special_ids)
    params = SamplingParams(temperature=chosen.temperature, seed=chosen.seed, max_tokens=chosen.max_tokens)
    found = []
    for prompt, ids in trainer.prompts.items():
        tokens = generate(trainer.model, ids, params, eos_ids=ends)
        found.append(Sample(prompt, "".join(stream_text(tokens, trainer.tokenizer))))
    return tuple(found)
