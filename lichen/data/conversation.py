"""Messages as a family writes them, with what is markup kept apart from what people and models said.

A text that holds "<|im_end|>" must not end a turn. So every string of the messages is marked before the
template joins them, and markup counts only where it is the template's own.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lichen.arch.families import chat_template, special_tokens
from lichen.data.formats import MAX_DOCUMENT_BYTES, Unreadable

# Code points that are no characters and stand in no text, around each string that comes from the messages.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_SAID = re.compile(f"{_OPEN}[^{_CLOSE}]*{_CLOSE}")
_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


class Written(NamedTuple):
    """A document: `texts` in UTF-8, one more than there are tokens of `markup` between them."""

    texts: tuple[bytes, ...]
    markup: tuple[str, ...] = ()


def conversation(messages: list[Any], family: str) -> Written:
    """`messages` ({role, content, ...}, or ShareGPT's {from, value}) through the chat template of `family`.

    Raises Unreadable if they are no messages, or such as the template cannot write.
    """
    prepared = [_message(message) for message in messages]
    if not prepared:
        raise Unreadable("empty")
    tokens = special_tokens(family)
    try:
        rendered = _template(family)(messages=prepared, bos_token=tokens.bos, eos_token=tokens.eos)
    except (TemplateError, TypeError, ValueError, RecursionError) as error:
        raise Unreadable(f"messages that the chat template of {family} cannot write") from error
    if len(rendered) > MAX_DOCUMENT_BYTES:
        raise Unreadable(f"a conversation longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
    texts, markup = _apart(rendered, tuple(sorted(set(tokens.markup) - tokens.spoken)))
    try:
        return Written(tuple(text.encode() for text in texts), tuple(markup))
    except UnicodeError as error:
        raise Unreadable("not UTF-8") from error


def _apart(rendered: str, markup: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The texts of `rendered`, and the markup between them."""
    texts, found, at = [""], [], 0
    for said in [*_SAID.finditer(rendered), None]:
        written = _matcher(markup).split(rendered[at : said.start() if said else None])
        texts[-1] += written[0]
        found += written[1::2]
        texts += written[2::2]
        if said:
            texts[-1] += said[0][1:-1]
            at = said.end()
    return texts, found


@cache
def _matcher(markup: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(markup, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def _message(message: Any) -> dict[str, Any]:
    if isinstance(message, dict) and "from" in message and "value" in message:
        sender = message["from"]
        message = {"role": _SHAREGPT_ROLES.get(str(sender), sender), "content": message["value"]}
    if not isinstance(message, dict) or "role" not in message:
        raise Unreadable("a list of records that are no messages; make a line of JSON of each")
    if message["role"] not in _ROLES:
        raise Unreadable("a message whose role is not system, user, assistant or tool")
    said = {name: value for name, value in message.items() if value is not None and name != "role"}
    return {"content": None, **_marked(said), "role": message["role"]}


def _marked(value: Any) -> Any:
    """`value` with all of its strings marked, white space around them aside, which templates may strip."""
    if isinstance(value, str):
        if _OPEN in value or _CLOSE in value:
            raise Unreadable("holds code points that are no characters")
        inner = value.strip()
        if not inner:
            return value
        before, after = value.split(inner, 1) if value != inner else ("", "")
        return f"{before}{_OPEN}{inner}{_CLOSE}{after}"
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if isinstance(value, dict):
        return {
            name: each if name == "type" else _marked(_as_json(each) if name == "arguments" else each)
            for name, each in value.items()
        }
    return value


def _as_json(arguments: Any) -> Any:
    """The arguments of a call as the template would write them: their names are not the template's either."""
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


@cache
def _template(family: str) -> Callable[..., str]:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(chat_template(family)).render


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)  # Jinja's own escapes for HTML


def _refuse(message: str) -> None:
    raise TemplateError(message)
