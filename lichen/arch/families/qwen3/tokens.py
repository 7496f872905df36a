"""From the tokenizer of Qwen/Qwen3-8B on Hugging Face, which has no token that opens a text."""

from lichen.arch.families.tokens import THINK, SpecialTokens

TOOL_CALLS = ("<tool_call>", "</tool_call>")

TOKENS = SpecialTokens(
    bos="<|endoftext|>",
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    end_of_turn="<|im_end|>",
    bos_opens_documents=False,
    markup=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *TOOL_CALLS,
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<tool_response>",
        "</tool_response>",
        *THINK,
    ),
    spoken=frozenset(TOOL_CALLS + THINK),
)

SPLITS = (
    "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
)
