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

IS_DEFAULT = True
"""`lichen data prepare` takes these unless told otherwise."""
