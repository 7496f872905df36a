"""Fine-grained experts with shared ones (DeepSeekMoE, arXiv 2401.06066), and their router."""

from dataclasses import dataclass
from typing import Literal

from lichen.arch.declaration import Weight, require, require_positive, swiglu, tensors
from lichen.arch.parts.dense import SILU, Activation


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, and with what weight (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

    `selection_bias` is the auxiliary-loss-free balancing bias (`topk_method: noaux_tc`).
    `aux_loss_alpha` is the weight of the sequence-wise balance loss. `hashed`: a fixed table says which
    experts a token id goes to, and the scores only weigh them (DeepSeek-V4's first layers).
    """

    n_routed_experts: int
    num_experts_per_tok: int
    scoring_func: Literal["sigmoid", "softmax", "sqrtsoftplus"] = "sigmoid"
    selection_bias: bool = True
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.0
    hashed: bool = False

    def __post_init__(self) -> None:
        require_positive("router", vars(self), "routed_scaling_factor", "aux_loss_alpha")
        require(
            self.scoring_func in ("sigmoid", "softmax", "sqrtsoftplus"),
            f"router: scoring_func is {self.scoring_func!r}; supported: 'sigmoid', 'softmax', 'sqrtsoftplus'",
        )
        require(
            self.n_routed_experts % self.n_group == 0,
            f"router: n_group ({self.n_group}) does not divide n_routed_experts ({self.n_routed_experts}); "
            "choose a divisor",
        )
        require(
            self.topk_group <= self.n_group,
            f"router: topk_group ({self.topk_group}) is greater than n_group ({self.n_group})",
        )
        selectable = self.n_routed_experts // self.n_group * self.topk_group
        require(
            self.num_experts_per_tok <= selectable,
            f"router: num_experts_per_tok ({self.num_experts_per_tok}) is greater than the {selectable} "
            f"experts in topk_group ({self.topk_group}) groups",
        )
        require(
            self.n_group == 1 or self.n_routed_experts // self.n_group >= 2,
            f"router: n_group ({self.n_group}) leaves one expert per group; a group's score is the sum of "
            "its two best experts, so give each group at least 2",
        )


@dataclass(frozen=True)
class MoE:
    """`latent_size`: the routed experts work in this width, between two projections that they share; the
    router and the shared experts see the whole hidden state (Kimi K3, arXiv 2607.24653).
    """

    router: Router
    moe_intermediate_size: int
    n_shared_experts: int = 0
    latent_size: int | None = None
    activation: Activation = SILU

    def __post_init__(self) -> None:
        require_positive("experts", vars(self), "n_shared_experts", latent_size="routed_expert_hidden_size")
        require(
            self.n_shared_experts >= 0,
            f"experts: n_shared_experts is {self.n_shared_experts}; it must be 0 or more",
        )

    def weights(self, hidden_size: int) -> list[Weight]:
        router, width = self.router, self.moe_intermediate_size
        found = [Weight("router", (router.n_routed_experts, hidden_size))]
        if self.latent_size:
            into = (self.latent_size, hidden_size)
            found += [*tensors("shared_experts", into, into[::-1]), *tensors("norms", self.latent_size)]
        counts = router.n_routed_experts, router.num_experts_per_tok
        found += swiglu("routed_experts", self.latent_size or hidden_size, width, *counts)
        if self.n_shared_experts:
            found += swiglu("shared_experts", hidden_size, self.n_shared_experts * width)
        return found

    def words(self) -> str:
        router = self.router
        shared = f" + {self.n_shared_experts} shared" if self.n_shared_experts else ""
        hashed = ", routed by a hash" if router.hashed else ""
        return (
            f"{router.num_experts_per_tok} of {router.n_routed_experts}{shared} experts of "
            f"{self.moe_intermediate_size:,}{hashed}"
        )
