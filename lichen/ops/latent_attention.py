"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): two forms with the same result.

    k_h = [W_uk,h c ; k_r]     c is the latent and k_r the rotated key, which all heads share
    v_h = W_uv,h c

Expanded: keys and values are made from the latents. Absorbed: W_uk goes into the query and W_uv into the
output, and heads attend to the latents themselves, q_c,h . W_uk,h c = (W_uk,h^T q_c,h) . c, which does more
arithmetic per key but reads 576 numbers where the expanded form makes and reads 128 x 320 (V3's sizes). In
training everything is expanded; for new tokens after stored ones the cheaper form is taken.

Shapes as in `lichen.ops.attention`; L latent width, R rotated width, C = D - R content width.
"""

from typing import Any

import torch
from torch import Tensor

from lichen.ops.attention import attention, has_kernel, stored_attention
from lichen.ops.linear import linear
from lichen.ops.native import FORMATS, Kernel, few, trains
from lichen.ops.sequences import Sequences

_attend_latents = Kernel("attend_latents", "18qd")
_join = Kernel("join_heads", "12q")
_split = Kernel("split_heads", "11q")


class _Joined(torch.autograd.Function):
    """Content (N, H, C) and rotated parts (N, H, R), or (N, R) that all heads share: (H, N, C + R)."""

    @staticmethod
    def forward(ctx: Any, content_NHC: Tensor, rotary: Tensor) -> Tensor:
        ctx.shape, ctx.width, ctx.shared = content_NHC.shape, rotary.shape[-1], rotary.ndim == 2
        return _joined(content_NHC, rotary)

    @staticmethod
    def backward(ctx: Any, grad_HND: Tensor) -> tuple[Tensor, Tensor]:
        content_NHC = grad_HND.new_empty(ctx.shape)
        return content_NHC, _parted(grad_HND.contiguous(), content_NHC, ctx.width, ctx.shared)


class _KeysAndValues(torch.autograd.Function):
    """What the latents were projected to (N, H, C + V), and the shared rotated key (N, R): keys (H, N, C + R)
    and values (H, N, V)."""

    @staticmethod
    def forward(ctx: Any, projected_NHX: Tensor, rope_key_NR: Tensor, content: int) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.content, ctx.width = projected_NHX.shape, content, rope_key_NR.shape[-1]
        content_NHC, value_NHV = projected_NHX.tensor_split([content], -1)
        return _joined(content_NHC, rope_key_NR), _joined(value_NHV, rope_key_NR[:, :0])

    @staticmethod
    def backward(ctx: Any, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor, None]:
        projected_NHX = grad_k.new_empty(ctx.shape)
        content_NHC, value_NHV = projected_NHX.tensor_split([ctx.content], -1)
        rope_key_NR = _parted(grad_k.contiguous(), content_NHC, ctx.width, shared=True)
        _parted(grad_v.contiguous(), value_NHV, 0, shared=True)
        return projected_NHX, rope_key_NR, None


def _joined(content_NHC: Tensor, rotary: Tensor) -> Tensor:
    tokens, heads, content = content_NHC.shape
    out = content_NHC.new_empty(heads, tokens, content + rotary.shape[-1])
    by_head = rotary.stride(1) if rotary.ndim == 3 else 0
    _join(
        *(
            FORMATS[out.dtype],
            content_NHC,
            content_NHC.stride(0),
            content_NHC.stride(1),
            rotary,
            rotary.stride(0),
            by_head,
            out,
        ),
        *(tokens, heads, content, rotary.shape[-1]),
    )
    return out


def _parted(joined_HND: Tensor, content_NHC: Tensor, width: int, shared: bool) -> Tensor:
    """Write the content's channels to content_NHC and return the others, (N, H, R), or added up (N, R)."""
    tokens, heads, content = content_NHC.shape
    rotary = joined_HND.new_empty((tokens, width) if shared else (tokens, heads, width))
    _split(
        *(
            FORMATS[rotary.dtype],
            joined_HND,
            content_NHC,
            content_NHC.stride(0),
            content_NHC.stride(1),
            rotary,
            shared,
        ),
        *(tokens, heads, content, width),
    )
    return rotary


def latent_attention(
    q_content_NHC: Tensor,
    q_rotary_NHR: Tensor,
    latent_NL: Tensor,
    rope_key_NR: Tensor,
    stored_BSW: Tensor | None,
    up: Tensor,
    sequences: Sequences,
    scale: float,
    max_logits: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`attention` by latents, of which `stored` has them and the rotated keys side by side, W = L + R.

    up (H (C + V), L): W_uk and W_uv of every head in turn.
    """
    if stored_BSW is not None and few(q_content_NHC) and stored_BSW.is_contiguous():
        return _absorbed(q_content_NHC, q_rotary_NHR, stored_BSW, up, sequences, scale), None
    up = up.to(latent_NL.dtype)
    heads, content = q_content_NHC.shape[1:]
    latent, value = latent_NL.shape[-1], len(up) // heads - content
    if sequences.whole and has_kernel(up.device, content, q_rotary_NHR.shape[-1], value):
        from lichen.ops import attention_triton

        k_NHC, v_NHV = linear(latent_NL, up).unflatten(-1, (heads, -1)).split([content, value], -1)
        k_rotary_NHR = rope_key_NR.unsqueeze(1).expand(-1, heads, -1)
        out, largest = attention_triton.attention(
            q_content_NHC, q_rotary_NHR, k_NHC, k_rotary_NHR, v_NHV, *sequences.bounds_N, scale
        )
        return out, largest if max_logits else None
    if sequences.whole and trains(q_content_NHC):
        projected_NHX = linear(latent_NL, up).unflatten(-1, (heads, -1))
        k, v = _KeysAndValues.apply(projected_NHX, rope_key_NR, content)
        q = _Joined.apply(q_content_NHC, q_rotary_NHR)
        return attention(q, k, v, None, sequences, scale, max_logits)
    if sequences.whole:
        k, v = _expanded(latent_NL, rope_key_NR, up, q_content_NHC)
        q = torch.cat([q_content_NHC.transpose(0, 1), q_rotary_NHR.transpose(0, 1)], -1)
        return attention(q, k, v, None, sequences, scale, max_logits)
    assert stored_BSW is not None  # as something was kept before
    outs = []
    for batch in sequences.batches:
        stored = stored_BSW[batch.slots, : batch.longest].to(q_content_NHC.dtype)
        q_content, q_rotary = q_content_NHC[batch.tokens], q_rotary_NHR[batch.tokens]
        if absorbs(batch.shape[1], content, latent, value):
            w_uk, w_uv = up.unflatten(0, (heads, -1)).split([content, value], 1)
            # Each weight on the side where it is read as it lies: einsum would copy it (docs/log.md).
            q_latent = torch.bmm(q_content.transpose(0, 1), w_uk).unflatten(1, batch.shape).transpose(0, 1)
            q = torch.cat([q_latent, q_rotary.unflatten(0, batch.shape).transpose(1, 2)], -1)
            stored = stored.unsqueeze(1)
            mixed = stored_attention(q, stored, stored, batch, scale)[..., :latent]
            outs.append(torch.bmm(w_uv, mixed.transpose(0, 1).flatten(1, 2).mT).permute(2, 0, 1))
        else:
            k, v = _expanded(stored[..., :latent], stored[..., latent:], up, q_content)
            q = torch.cat([q_content, q_rotary], -1).unflatten(0, batch.shape).transpose(1, 2)
            out = stored_attention(q, k, v.contiguous(), batch, scale)
            outs.append(out.transpose(1, 2).flatten(0, 1))
    return outs[0] if len(outs) == 1 else torch.cat(outs), None


def _absorbed(
    q_content_NHC: Tensor,
    q_rotary_NHR: Tensor,
    stored_BSW: Tensor,
    up: Tensor,
    sequences: Sequences,
    scale: float,
) -> Tensor:
    """The absorbed form for a few tokens: (N, H, V)."""
    (tokens, heads, content), rotary, latent = q_content_NHC.shape, q_rotary_NHR.shape[-1], up.shape[1]
    value = len(up) // heads - content
    out = q_content_NHC.new_empty(tokens, heads, value)
    by_token, by_head, _ = q_content_NHC.stride()
    _attend_latents(
        *(q_content_NHC, by_token, q_rotary_NHR.contiguous(), tokens, heads, content, rotary, latent, value),
        *(FORMATS[up.dtype], up, FORMATS[stored_BSW.dtype], stored_BSW, stored_BSW.shape[1]),
        *(sequences.slot_N, by_head, sequences.positions_N, out, scale),
    )
    return out


def absorbs(length: int, content: int, latent: int, value: int) -> bool:
    """Whether attending to latents costs less than expanding every stored key and value.

    Per stored token and head, in multiply-adds: expanding costs (C + V) L once and (C + R + V) for each of
    `length` queries; absorbed attention costs (2 L + R) per query.
    """
    return length * (2 * latent - content - value) < (content + value) * latent


def _expanded(latent: Tensor, rope_key: Tensor, up: Tensor, q_content_NHC: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (..., H, S, D) and values (..., H, S, V) of all heads, from (..., S, L) and (..., S, R)."""
    heads, content = q_content_NHC.shape[1:]
    up_projected = linear(latent, up).unflatten(-1, (heads, -1)).transpose(-3, -2)
    k_content, v = up_projected.tensor_split([content], -1)
    k_rotary = rope_key.unsqueeze(-3).expand(*k_content.shape[:-1], -1)
    return torch.cat([k_content, k_rotary], -1), v
