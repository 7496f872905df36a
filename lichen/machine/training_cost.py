"""What it costs to train a model once: FLOPs, GPU hours, money.

Only the run itself: no failed runs, no ablations, no reinforcement learning, no people. FLOPs are those of
the matrix products, as `lichen.arch.flops` counts them, forward and backward without recomputation. MTP
layers are left out, as in the utilisation that DeepSeek publishes (arXiv 2505.09343, table 4).
"""

import math
from dataclasses import dataclass

from lichen.arch.families import load_spec
from lichen.arch.flops import training_flops_per_token
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.machine.devices import Device, parse

SEQ_LEN = 4096  # what DeepSeek-V3 and Kimi K2 were pre-trained at (arXiv 2412.19437, 2507.20534)
NOT_COUNTED = ("failed and smaller runs", "reinforcement learning", "data", "recomputation", "people")


@dataclass(frozen=True)
class Run:
    """A training run whose hours are published."""

    title: str
    model: str
    tokens: int
    gpu: str
    gpu_hours: float
    source: str


# Its pre-training. The share of the bf16 rate that DeepSeek itself gives for it is 38.94 %, the products of
# causal attention counted once (arXiv 2505.09343, table 4).
CALIBRATION = Run(
    "DeepSeek-V3",
    "deepseek-v3",
    14_800_000_000_000,
    "h800",
    2_664_000,
    "https://arxiv.org/abs/2412.19437, table 1",
)


@dataclass(frozen=True)
class TrainingCost:
    """`flops`: of the whole run. `usd` is None where no price was given."""

    tokens: int
    flops_per_token: int
    flops: int
    mfu: float
    gpu_hours: float
    usd: float | None


def estimate(
    spec: ModelSpec,
    tokens: int,
    device: Device,
    mfu: float,
    price_per_hour: float | None = None,
    seq_len: int = SEQ_LEN,
) -> TrainingCost:
    """Training `spec` on `tokens` tokens in sequences of `seq_len`.

    mfu: the share of the device's dense bf16 rate that is got; a run in FP8 may be above 1.
    price_per_hour: USD per device and hour. Raises LichenError for what is not positive, and for a device
    whose rate is not published.
    """
    for name, value in (("tokens", tokens), ("mfu", mfu), ("seq_len", seq_len)):
        if not 0 < value < math.inf:
            raise LichenError(f"{name} is {value:g}; it must be a number above 0")
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise LichenError(f"the price per hour is {price_per_hour:g}; it cannot be negative")
    if mfu > 2:
        raise LichenError(f"mfu is {mfu:g}; it is a share, like 0.35, and even FP8 reaches no more than 2")
    if seq_len > spec.max_position_embeddings:
        raise LichenError(f"seq_len is {seq_len}; this model has {spec.max_position_embeddings} positions")
    if device.bf16_flops is None:
        raise LichenError(f"the rate of {device.title} is not published, so its hours cannot be computed")
    per_token = training_flops_per_token(spec, seq_len)
    hours = per_token * tokens / (device.bf16_flops * mfu) / 3600
    return TrainingCost(
        tokens=tokens,
        flops_per_token=per_token,
        flops=per_token * tokens,
        mfu=mfu,
        gpu_hours=hours,
        usd=None if price_per_hour is None else hours * price_per_hour,
    )


def calibrate() -> float:
    """The share of its devices' bf16 rate that the run CALIBRATION got, from its published hours."""
    spec, device = load_spec(CALIBRATION.model), parse(CALIBRATION.gpu).device
    return estimate(spec, CALIBRATION.tokens, device, 1.0).gpu_hours / CALIBRATION.gpu_hours
