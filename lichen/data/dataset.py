"""Prepared data, opened for reading: memory-mapped token shards seen as one row of documents per split."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from lichen.data.manifest import ARRAY_HEADER_BYTES, TOKENIZER_FILE, Manifest, Shard, Split, read_manifest
from lichen.data.tokenizer import SpecialIds, load_tokenizer, special_ids, token_bytes, tokenizer_hash
from lichen.errors import LichenError
from lichen.files.sealed import sha256_of


class Documents:
    """The documents of one split, each `bos? + text + eos`, end to end in one sequence of tokens.

    `starts` (documents + 1,) int64: document d is `read(starts[d], starts[d + 1])`.
    """

    def __init__(self, folder: Path, shards: list[Shard]):
        self._folder = folder
        self._shards = shards
        self._shard_starts = np.cumsum([0, *(shard.counts.tokens for shard in shards)], dtype=np.int64)
        self._open: dict[int, np.ndarray] = {}
        offsets = [
            _load(folder / shard.files[1])[:-1] + start
            for shard, start in zip(shards, self._shard_starts, strict=False)
        ]
        self.starts = np.concatenate([*offsets, self._shard_starts[-1:]])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the split, which must lie within one document; (stop - start,)."""
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = _load(self._folder / self._shards[shard].files[0], mmap_mode="r")
        first = self._shard_starts[shard]
        return self._open[shard][start - first : stop - first]


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
        """Open prepared data; shards are mapped when they are first read.

        Raises LichenError if the preparation is missing or unfinished, the tokenizer is another one than
        the manifest names, or a shard is missing or has another size than it was written with.
        """
        manifest = read_manifest(folder)
        if tokenizer_hash(folder) != manifest.tokenizer_hash:
            raise LichenError(
                f"{folder / TOKENIZER_FILE} is not the tokenizer this data was prepared with; put the "
                "original back or prepare the data again"
            )
        for shard in manifest.shards:
            tokens, offsets = shard.files
            _check_size(folder / tokens, shard.counts.tokens * np.dtype(manifest.dtype).itemsize)
            _check_size(folder / offsets, (shard.counts.documents + 1) * 8)
        return cls(folder, manifest)

    def documents(self, split: Split) -> Documents:
        """The documents of `split`. Raises LichenError if it has none."""
        shards = [shard for shard in self.manifest.shards if shard.split == split]
        if not shards:
            raise LichenError(
                f"the {split} split of {self.folder} is empty; prepare the data again with more documents "
                "or another --validation-fraction"
            )
        if split not in self._splits:
            self._splits[split] = Documents(self.folder, shards)
        return self._splits[split]

    def verify(self) -> None:
        """Compare all shards with the hashes of the manifest. Raises LichenError naming the damaged file."""
        for shard in self.manifest.shards:
            for name, sha256 in zip(shard.files, (shard.tokens_sha256, shard.offsets_sha256), strict=True):
                if sha256_of(self.folder / name) != sha256:
                    raise LichenError(f"{self.folder / name} is damaged; delete the folder and prepare again")


def _check_size(path: Path, array_bytes: int) -> None:
    size, expected = path.stat().st_size if path.is_file() else None, ARRAY_HEADER_BYTES + array_bytes
    if size != expected:
        what = "missing" if size is None else f"truncated or damaged: {size:,} bytes instead of {expected:,}"
        raise LichenError(f"{path} is {what}; delete the folder and prepare the data again")


def _load(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LichenError(f"{path} cannot be read; delete the folder and prepare the data again") from error
