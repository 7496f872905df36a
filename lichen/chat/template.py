"""Chat templates: how a conversation is written as text, per family of special tokens.

The files in `templates/` are what an exported folder carries as `chat_template.jinja`; every engine that
reads Hugging Face folders renders them from `messages`, `tools` and `add_generation_prompt` in the form of
OpenAI's chat API. None gives the model a name that the conversation does not give it.
"""

from __future__ import annotations

from importlib import resources


def chat_template(family: str) -> str:
    """The Jinja source for the special tokens of `family`: "kimi_k2", "deepseek_v3" or "llama"."""
    return (resources.files("lichen.chat") / "templates" / f"{family}.jinja").read_text(encoding="utf-8")
