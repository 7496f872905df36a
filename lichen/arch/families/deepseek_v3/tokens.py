"""From the tokenizer of deepseek-ai/DeepSeek-V3.1 on Hugging Face."""

from __future__ import annotations

from lichen.arch.families.tokens import SpecialTokens

TOOL_CALLS = (
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
THINK = ("<think>", "</think>")

TOKENS = SpecialTokens(
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
    pad="<｜▁pad▁｜>",
    end_of_turn="<｜end▁of▁sentence｜>",
    bos_opens_documents=True,
    markup=(
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜▁pad▁｜>",
        *THINK,
        "<｜fim▁hole｜>",
        "<｜fim▁begin｜>",
        "<｜fim▁end｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<|EOT|>",
        *TOOL_CALLS,
    ),
    spoken=frozenset(TOOL_CALLS + THINK),
)
