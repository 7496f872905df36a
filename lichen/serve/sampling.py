"""From logits to the next token: temperature, top-k, top-p, in that order.

Shape suffixes: B sequences, V vocabulary, K candidates that may be drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lichen.errors import LichenError, NotFinite

NO_NUMBER = -1
COLDEST = 1e-6
"""Below it, logits over the temperature may be more than fp32 holds."""


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt.

    `temperature` 0 is greedy: always the most likely token, whatever `top_k`, `top_p` and `seed` say.
    `top_k` 0 and `top_p` 1 leave every token in play. `seed` None draws differently each time. The text
    ends before the first of the `stop` strings.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < float("inf"):
            raise LichenError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or at least {COLDEST:g}"
            )
        if not 0 < self.top_p <= 1:
            raise LichenError(f"top_p is {self.top_p}; it must be greater than 0 and at most 1")
        if self.top_k < 0:
            raise LichenError(f"top_k is {self.top_k}; it must be 0 (off) or greater")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise LichenError(f"seed is {self.seed}; it must be a number of 64 bits")
        if self.max_tokens < 1:
            raise LichenError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if "" in self.stop:
            raise LichenError("a stop string is empty; it would end the text before it begins")

    def generator(self, device: torch.device) -> torch.Generator:
        """The source of randomness for one continuation on `device`."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(logits_BV: Tensor, params: SamplingParams, generator: torch.Generator) -> Tensor:
    """Draw one token per sequence: (B,) int64.

    Raises NotFinite when the logits are not numbers, as after a diverged training or in a damaged file.
    """
    tokens_B = draw(logits_BV, params, generator)
    for token in tokens_B.tolist():
        checked(token)
    return tokens_B


def draw(logits_BV: Tensor, params: SamplingParams, generator: torch.Generator) -> Tensor:
    """`sample` where the logits lie, waiting for nothing: NO_NUMBER in place of a token where they are not
    numbers, for `checked` to find once it is read."""
    if params.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
    else:
        ids_BK, probabilities_BK = candidates(logits_BV, params)
        # As `torch.multinomial` draws one token, without its questions to the device: the first of K clocks
        # to ring, each of which rings at a random time, the sooner the likelier its token.
        clocks_BK = torch.empty_like(probabilities_BK).exponential_(generator=generator)
        first_B1 = (probabilities_BK / clocks_BK).argmax(-1, keepdim=True)
        tokens_B = ids_BK.gather(-1, first_B1).squeeze(-1)
    return tokens_B.where(logits_BV.amax(-1).isfinite(), NO_NUMBER)


def checked(token: int) -> int:
    """A drawn token. Raises NotFinite where there was none to draw."""
    if token == NO_NUMBER:
        raise NotFinite("the model's output is not a number (NaN or infinity): its weights are damaged")
    return token


def candidates(logits_BV: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn, most likely first, and their probabilities: (B, K) int64, (B, K) fp32.

    Top-p (nucleus sampling, arXiv 1904.09751) keeps the smallest set of most likely tokens whose
    probability, after temperature and top-k, reaches `top_p`; what it drops has probability 0.
    """
    vocab_size = logits_BV.shape[-1]
    scaled_BV = logits_BV.float() / params.temperature
    logits_BK, ids_BK = scaled_BV.topk(min(params.top_k or vocab_size, vocab_size))
    probabilities_BK = logits_BK.softmax(-1)
    if params.top_p < 1:
        # Summed from the least likely upwards: in fp32 a small tail would vanish beside the large terms.
        tail_BK = probabilities_BK.flip(-1).cumsum(-1).flip(-1)
        dropped_BK = tail_BK <= 1 - params.top_p
        dropped_BK[:, 0] = False
        probabilities_BK = probabilities_BK.masked_fill(dropped_BK, 0)
        probabilities_BK = probabilities_BK / probabilities_BK.sum(-1, keepdim=True)
    return ids_BK, probabilities_BK
