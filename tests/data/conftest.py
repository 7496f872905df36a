import random
from pathlib import Path

import pytest
from hypothesis import settings

from lichen.data.dataset import TokenDataset
from lichen.data.prepare import prepare
from lichen.data.sources import standard_library

# How long an example takes is the machine's affair.
settings.register_profile("untimed")
settings.load_profile("untimed")


def write_corpus(folder: Path, documents: int, seed: int = 0) -> Path:
    """Files of real Python text, of very different lengths."""
    chance = random.Random(seed)
    text = "".join(path.read_text() for path in standard_library() if path.parent.name == "json")
    folder.mkdir(parents=True)
    for number in range(documents):
        start = chance.randrange(len(text) // 2)
        length = int(chance.paretovariate(1) * 100)
        (folder / f"{number:04d}.py").write_text(f"# {number}\n{text[start : start + length]}")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", 150)


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of several shards. Tests must not change it."""
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare([str(corpus)], out, vocab_size=512, validation_fraction=0.2, shard_bytes=2000, workers=1)
    return out


@pytest.fixture
def dataset(prepared: Path) -> TokenDataset:
    return TokenDataset.open(prepared)
