"""From the tokenizers of moonshotai/Kimi-K2-Instruct and Kimi-K2-Thinking on Hugging Face."""

from lichen.arch.families.tokens import THINK, SpecialTokens

TOOL_CALLS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)

TOKENS = SpecialTokens(
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
        *TOOL_CALLS,
        "<|im_middle|>",
        *THINK,
        "[UNK]",
        "[PAD]",
    ),
    spoken=frozenset(TOOL_CALLS + THINK),
)

# Letters without case count as both; Han stands apart.
_CAPITAL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

SPLITS = (
    "|".join(
        (
            r"[\p{Han}]+",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}*{_SMALL}+{_CONTRACTION}",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}+{_SMALL}*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
)

IS_DEFAULT = True
"""`lichen data prepare` takes these unless told otherwise."""
