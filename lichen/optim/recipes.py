"""Optimizer recipes: what each published training run did, as one row of settings.

A recipe is data. Change a field with `dataclasses.replace(muonclip, lr=3e-4)`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from lichen.errors import LichenError
from lichen.nn.roles import Kind
from lichen.optim.newton_schulz import DEEPSEEK_V4, KELLER_JORDAN, Schedule

Published = Literal["adamw", "muon", "moonlight", "muonclip", "deepseek_v4", "deepseek_v4_1"]
"""The names of the recipes below."""

EVERY_KIND: tuple[Kind, ...] = ("matrix", "embedding", "head", "norm", "bias", "vector")


@dataclass(frozen=True)
class OptimizerRecipe:
    """Settings of one optimizer run.

    Matrices (`Role.kind == "matrix"`) are updated by `matrices`, embeddings and output layers by
    `embeddings`, everything else by AdamW.

    lr, adamw_lr: peak learning rates; `adamw_lr` None means that AdamW's parameters share `lr`.
    weight_decay: decoupled, W <- W (1 - lr * weight_decay) - lr * update, for kinds in `decayed`.
    momentum, nesterov: M <- momentum * M + G; the matrix that is orthogonalised is
        G + momentum * M with Nesterov, M without.
    ns_schedule: Newton-Schulz coefficients (a, b, c), one triple per step.
    update_rms: the orthogonalised matrix is multiplied by update_rms * sqrt(max(rows, columns)), which
        gives its entries that root mean square when its singular values are 1 (Moonlight,
        arXiv 2502.16982, section 2.2). None multiplies by Keller Jordan's sqrt(max(1, rows / columns)).
        "sinkhorn" moves every token's row by that root mean square, and by 1 with None.
    per_head: orthogonalise every attention head's block of rows by itself.
    adamw_betas, adamw_eps: for the parameters that follow AdamW.
    qk_clip_tau: largest attention logit allowed after a step (`lichen.optim.qk_clip`), None for no limit.
    """

    name: str
    lr: float
    weight_decay: float
    matrices: Literal["muon", "adamw"] = "muon"
    embeddings: Literal["adamw", "sinkhorn"] = "adamw"
    momentum: float = 0.95
    nesterov: bool = True
    ns_schedule: Schedule = KELLER_JORDAN
    update_rms: float | None = 0.2
    per_head: bool = False
    adamw_lr: float | None = None
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8
    decayed: tuple[Kind, ...] = EVERY_KIND
    qk_clip_tau: float | None = None

    def __post_init__(self) -> None:
        def require(condition: bool, field: str, demand: str) -> None:
            if not condition:
                value = getattr(self, field)
                raise LichenError(f"optimizer {self.name!r}: {field} is {value!r}; it must be {demand}")

        require(self.lr >= 0, "lr", "0 or more")
        require(self.adamw_lr is None or self.adamw_lr >= 0, "adamw_lr", "0 or more, or none")
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(self.matrices in ("muon", "adamw"), "matrices", "'muon' or 'adamw'")
        require(self.embeddings in ("adamw", "sinkhorn"), "embeddings", "'adamw' or 'sinkhorn'")
        require(0 <= self.momentum < 1, "momentum", "at least 0 and less than 1")
        require(len(self.ns_schedule) > 0, "ns_schedule", "a list with at least one (a, b, c)")
        require(all(len(row) == 3 for row in self.ns_schedule), "ns_schedule", "a list of (a, b, c)")
        require(self.update_rms is None or self.update_rms > 0, "update_rms", "greater than 0, or none")
        require(all(0 <= beta < 1 for beta in self.adamw_betas), "adamw_betas", "at least 0 and less than 1")
        require(self.adamw_eps > 0, "adamw_eps", "greater than 0")
        require(set(self.decayed) <= set(EVERY_KIND), "decayed", f"some of {', '.join(EVERY_KIND)}")
        require(self.qk_clip_tau is None or self.qk_clip_tau > 0, "qk_clip_tau", "greater than 0, or none")

    def algorithm(self, kind: Kind) -> Literal["muon", "sinkhorn", "adamw"]:
        """What updates a parameter of this kind."""
        if kind == "matrix":
            return self.matrices
        return self.embeddings if kind in ("embedding", "head") else "adamw"

    def scale(self, rows: int, columns: int) -> float:
        """Factor from an orthogonalised (rows, columns) matrix to the update that `lr` multiplies."""
        if self.update_rms is None:
            return max(1.0, rows / columns) ** 0.5
        return self.update_rms * max(rows, columns) ** 0.5


# AdamW (arXiv 1711.05101) as language models are trained with it: nothing one-dimensional decays.
adamw = OptimizerRecipe(
    name="adamw", lr=3e-4, weight_decay=0.1, matrices="adamw", decayed=("matrix", "embedding", "head")
)

# Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).
muon = OptimizerRecipe(
    name="muon", lr=0.02, weight_decay=0.0, update_rms=None, adamw_lr=3e-4, adamw_eps=1e-10
)

# Moonlight, "Muon is Scalable for LLM Training" (arXiv 2502.16982): the update matches AdamW's root mean
# square, so learning rate and weight decay are shared with AdamW. Norms decay too (section 2.2).
moonlight = OptimizerRecipe(name="moonlight", lr=3e-4, weight_decay=0.1)

# Kimi K2 (arXiv 2507.20534), algorithm 1: momentum without Nesterov, then QK-clip.
muonclip = OptimizerRecipe(name="muonclip", lr=2e-4, weight_decay=0.1, nesterov=False, qk_clip_tau=100.0)

# DeepSeek-V4 (arXiv 2606.19348): ten steps that end at singular values of 1, so 0.18 where five steps
# that end near 0.9 take 0.2.
deepseek_v4 = OptimizerRecipe(
    name="deepseek_v4", lr=2.7e-4, weight_decay=0.1, ns_schedule=DEEPSEEK_V4, update_rms=0.18, adamw_eps=1e-20
)

# DeepSeek-V4.1 (technical report, 2026): heads one by one, and balanced updates for embedding and output
# layer, which do not decay, as biases do not.
deepseek_v4_1 = replace(
    deepseek_v4,
    name="deepseek_v4_1",
    lr=2.6e-4,
    embeddings="sinkhorn",
    per_head=True,
    decayed=("matrix", "norm"),
)
