"""Continue a prompt: one pass over the prompt, then one token at a time from the cache."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from lichen.errors import LichenError
from lichen.kv.contiguous import Contiguous
from lichen.machine.accelerator import upload
from lichen.nn.transformer import Transformer
from lichen.serve.decode import Decoder
from lichen.serve.sampling import SamplingParams, checked

# A long prompt enters the cache in pieces, so that attention scores take bounded memory.
PREFILL_CHUNK = 2048


def generate(
    model: Transformer, prompt_ids: list[int], params: SamplingParams, *, eos_ids: Collection[int]
) -> Iterator[int]:
    """Yield the tokens that follow `prompt_ids`, as they are drawn.

    Ends before a token of `eos_ids`, after `params.max_tokens`, or where the context is full. Stop strings
    are the business of the text (`lichen.serve.detokenizer`): whoever reads it stops taking tokens.

    Raises LichenError when the prompt is empty or leaves no room in the model's context.
    """
    context = model.spec.max_position_embeddings
    if not prompt_ids:
        raise LichenError("the prompt is empty; give at least one token to continue")
    if len(prompt_ids) >= context:
        raise LichenError(
            f"the prompt has {len(prompt_ids):,} tokens and the model's context {context:,}; "
            "shorten the prompt so that there is room for an answer"
        )
    device = next(model.parameters()).device
    generator = params.generator(device)
    capacity = min(context, len(prompt_ids) + params.max_tokens)
    storage = Contiguous(model.spec, 1, capacity, model.compute_dtype, device)

    for chunk in upload(torch.tensor(prompt_ids), device).split(PREFILL_CHUNK):
        logits = _next_logits(model, chunk, storage)
    decoder = Decoder(model, storage, params, generator)
    decoder.enter(logits)
    for (token,) in decoder.texts(capacity - len(prompt_ids) - 1):
        if checked(token) in eos_ids:
            return
        yield token


@torch.no_grad()
def _next_logits(model: Transformer, tokens: Tensor, storage: Contiguous) -> Tensor:
    """Read the next tokens (N,) of the sequence in `storage`; the logits after the last, (1, vocab_size)."""
    return model.logits(model(tokens, storage.take([len(tokens)]))[-1:])
