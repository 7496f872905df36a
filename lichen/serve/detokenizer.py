"""From a stream of tokens to a stream of text that never has to be taken back.

A byte-level token is a run of bytes and may hold a part of a character; a stop string may begin in one
token and end in another. Both are held back until it is certain what they are. The text that comes out, in
whatever pieces, is the text of all the tokens together, cut before the first stop string.
"""

import codecs
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from lichen.errors import LichenError


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


class Detokenizer:
    """Text of one continuation, token by token: special tokens are left out, broken UTF-8 becomes U+FFFD.

    `stopped` turns true when a stop string has been completed; nothing comes out after it. Of several stop
    strings the one completed first counts, so the result does not depend on where tokens end.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        if type(tokenizer.decoder).__name__ != "ByteLevel":
            raise LichenError(
                f"the tokenizer decodes with {type(tokenizer.decoder).__name__}; only byte-level tokenizers "
                "(DeepSeek, Kimi, Llama 3 and those that `lichen data prepare` trains) can be read"
            )
        self.stopped = False
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = stop
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token; return the text that is now certain, possibly none."""
        return "" if token in self._special else self._release(self._utf8.decode(self._bytes(token)))

    def finish(self) -> str:
        """The text still held back, once no more tokens follow."""
        text = self._release(self._utf8.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _bytes(self, token: int) -> bytes:
        characters = self._tokenizer.id_to_token(token)
        if characters is None:  # models pad their vocabulary to a round number; those tokens say nothing
            return b""
        if all(character in BYTE_OF_CHARACTER for character in characters):
            return bytes(BYTE_OF_CHARACTER[character] for character in characters)
        return characters.encode()

    def _release(self, text: str) -> str:
        """Add `text`; return what can no longer become part of a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning, but not the whole, of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next(size for size in range(longest, -1, -1) if text.endswith(stop[:size]))


def stream_text(tokens: Iterable[int], tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> Iterator[str]:
    """Non-empty pieces of text as the tokens arrive; takes no more tokens once a stop string is complete."""
    detokenizer = Detokenizer(tokenizer, stop)
    for token in tokens:
        if piece := detokenizer.push(token):
            yield piece
        if detokenizer.stopped:
            return
    if piece := detokenizer.finish():
        yield piece
