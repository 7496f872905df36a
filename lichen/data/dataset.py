"""Prepared data, opened for reading: token shards seen as one row of documents per split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lichen.data.manifest import (
    TOKENIZER_FILE,
    Manifest,
    Shard,
    Split,
    check_sources_file,
    read_manifest,
)
from lichen.data.shards import ArrayFile, check_shard, offsets_of, tokens_of
from lichen.data.tokenizer import SpecialIds, load_tokenizer, special_ids, token_bytes, tokenizer_hash
from lichen.errors import LichenError

# Files that are kept open at a time: a process may often open no more than 256.
_MOST_OPEN = 64


class Documents:
    """The documents of one split, each `bos? + text + eos`, end to end in one sequence of tokens.

    `starts` (documents + 1,) int64: document d is `read(starts[d], starts[d + 1])`. The content of a shard is
    compared with its hash when it is first read. Raises LichenError for one that is damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split):
        self._folder = folder
        self._manifest = manifest
        self._shards = [shard for shard in manifest.shards if shard.split == split]
        self._shard_starts = np.cumsum([0, *(shard.counts.tokens for shard in self._shards)], dtype=np.int64)
        self._open: dict[int, ArrayFile] = {}
        self._checked: set[int] = set()
        offsets = [
            _offsets(folder, shard)[:-1] + start
            for shard, start in zip(self._shards, self._shard_starts, strict=False)
        ]
        self.starts = np.concatenate([*offsets, self._shard_starts[-1:]])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the split, which must lie within one document; (stop - start,).

        Raises LichenError if the shard is damaged or has become shorter, or holds what is no token.
        """
        index = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        first = int(self._shard_starts[index])
        tokens = self._tokens(index).read(int(start) - first, int(stop) - first)
        wrong = tokens >= self._manifest.vocab_size
        if wrong.any():
            at = int(wrong.argmax())
            raise LichenError(
                f"{self._folder / self._shards[index].files[0]} holds {tokens[at]} at position "
                f"{int(start) - first + at:,} and the vocabulary ends at {self._manifest.vocab_size - 1}; "
                "delete the folder and prepare the data again"
            )
        return tokens

    def _tokens(self, index: int) -> ArrayFile:
        if index not in self._open:
            if len(self._open) == _MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[index] = tokens_of(self._folder, self._shards[index], self._manifest.dtype)
        if index not in self._checked:
            self._open[index].check_content()
            self._checked.add(index)
        return self._open[index]


class TokenDataset:
    """A folder that `lichen data prepare` filled. Use `TokenDataset.open`.

    `identity` is a hash over the tokenizer and the contents of all shards. `token_bytes`
    (vocab_size,) int32 is how many UTF-8 bytes each token stands for.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.tokenizer_path = folder / TOKENIZER_FILE
        hashes = [(shard.tokens_sha256, shard.offsets_sha256) for shard in manifest.shards]
        self.identity = hashlib.sha256(repr((manifest.tokenizer_hash, hashes)).encode()).hexdigest()
        tokenizer = load_tokenizer(self.tokenizer_path)
        self.special_ids: SpecialIds = special_ids(tokenizer, manifest.parameters.family)
        self.token_bytes = token_bytes(tokenizer, manifest.parameters.family)
        self._splits: dict[Split, Documents] = {}

    @classmethod
    def open(cls, folder: Path) -> TokenDataset:
        """Open prepared data; shards are opened when they are first read.

        Raises LichenError if the preparation is missing or unfinished, the manifest is damaged, the tokenizer
        is another one than it names, or a shard is missing or has another size or header than was written.
        """
        manifest = read_manifest(folder)
        if tokenizer_hash(folder) != manifest.tokenizer_hash:
            raise LichenError(
                f"{folder / TOKENIZER_FILE} is not the tokenizer this data was prepared with; put the "
                "original back or prepare the data again"
            )
        for shard in manifest.shards:
            check_shard(folder, shard, manifest.dtype, contents=False)
        return cls(folder, manifest)

    def documents(self, split: Split) -> Documents:
        """The documents of `split`. Raises LichenError if it has none."""
        if not any(shard.split == split for shard in self.manifest.shards):
            raise LichenError(
                f"the {split} split of {self.folder} is empty; prepare the data again with more documents "
                "or another --validation-fraction"
            )
        if split not in self._splits:
            self._splits[split] = Documents(self.folder, self.manifest, split)
        return self._splits[split]

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compare all files with their hashes; `progress` is told of shards. Raises LichenError naming the
        damaged one."""
        check_sources_file(self.folder, self.manifest.sources_sha256)
        for done, shard in enumerate(self.manifest.shards):
            progress(done, len(self.manifest.shards))
            check_shard(self.folder, shard, self.manifest.dtype, contents=True)


def _offsets(folder: Path, shard: Shard) -> np.ndarray:
    with offsets_of(folder, shard) as file:
        file.check_content()
        offsets = file.read(0, shard.counts.documents + 1)
    if (offsets[0], offsets[-1]) != (0, shard.counts.tokens) or (np.diff(offsets) < 1).any():
        raise LichenError(
            f"{folder / shard.files[1]} does not say where documents begin; delete the folder and prepare "
            "the data again"
        )
    return offsets
