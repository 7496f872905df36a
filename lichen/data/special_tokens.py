"""The special tokens of each model family, in the order of their ids in the published tokenizers.

Sources: the tokenizer files of moonshotai/Kimi-K2-Instruct and Kimi-K2-Thinking, deepseek-ai/DeepSeek-V3.1
and meta-llama/Llama-3.1-8B-Instruct on Hugging Face. Tokens of other modalities and unused reserved
slots are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from lichen.errors import LichenError


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of one family.

    A document is trained on as `bos? + text + eos`; `bos` only where `bos_opens_documents`. `markup` lists
    every token in id order, the four named ones included; `spoken` those of them that belong to what the
    model says (reasoning and tool-call markers), which a decoder that skips special tokens must keep.
    """

    bos: str
    eos: str
    pad: str
    end_of_turn: str
    bos_opens_documents: bool
    markup: tuple[str, ...]
    spoken: frozenset[str]


_KIMI_TOOL_CALLS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_DEEPSEEK_TOOL_CALLS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
)
_THINK = ("<think>", "</think>")

FAMILIES = {
    "kimi_k2": SpecialTokens(
        bos="[BOS]",
        eos="[EOS]",
        pad="[PAD]",
        end_of_turn="<|im_end|>",
        bos_opens_documents=False,
        markup=(
            "[BOS]",
            "[EOS]",
            "<|im_end|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "[EOT]",
            "<|im_system|>",
            *_KIMI_TOOL_CALLS,
            "<|im_middle|>",
            *_THINK,
            "[UNK]",
            "[PAD]",
        ),
        spoken=frozenset(_KIMI_TOOL_CALLS + _THINK),
    ),
    "deepseek_v3": SpecialTokens(
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        pad="<｜▁pad▁｜>",
        end_of_turn="<｜end▁of▁sentence｜>",
        bos_opens_documents=True,
        markup=(
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜▁pad▁｜>",
            *_THINK,
            "<｜fim▁hole｜>",
            "<｜fim▁begin｜>",
            "<｜fim▁end｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<|EOT|>",
            *_DEEPSEEK_TOOL_CALLS,
        ),
        spoken=frozenset(_DEEPSEEK_TOOL_CALLS + _THINK),
    ),
    "llama": SpecialTokens(
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|finetune_right_pad_id|>",
        end_of_turn="<|eot_id|>",
        bos_opens_documents=True,
        markup=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ),
        spoken=frozenset(),
    ),
}


def family_tokens(family: str) -> SpecialTokens:
    """The special tokens of `family`. Raises LichenError for a family without an entry in FAMILIES."""
    if family not in FAMILIES:
        raise LichenError(f"no special tokens are known for family {family!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[family]


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens that training and generation need.

    `document_start` holds what precedes the text of a document: (bos,) or nothing. Generation stops at
    `eos` or `end_of_turn`.
    """

    bos: int | None
    eos: int
    pad: int
    end_of_turn: int | None
    document_start: tuple[int, ...]


def special_ids(tokenizer: Tokenizer, family: str) -> SpecialIds:
    """Look up the special tokens of `family` in `tokenizer`.

    A tokenizer without the padding token pads with eos, which no loss ever sees. Raises LichenError if the
    end-of-document token, or a bos that this family's documents open with, is not in the vocabulary.
    """
    tokens = family_tokens(family)
    named = (tokens.bos, tokens.eos, tokens.pad, tokens.end_of_turn)
    bos, eos, pad, end_of_turn = (tokenizer.token_to_id(text) for text in named)
    if eos is None or (bos is None and tokens.bos_opens_documents):
        missing = tokens.eos if eos is None else tokens.bos
        raise LichenError(
            f"the tokenizer has no token {missing!r}, which marks documents in family {family!r}; choose "
            f"the family the tokenizer belongs to: {', '.join(FAMILIES)}"
        )
    start = (bos,) if tokens.bos_opens_documents and bos is not None else ()
    return SpecialIds(bos, eos, eos if pad is None else pad, end_of_turn, start)
