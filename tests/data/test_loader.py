import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lichen.data.dataset import TokenDataset
from lichen.data.loader import Batch, Loader
from lichen.data.prepare import prepare
from lichen.data.tokenizer import load_tokenizer
from lichen.errors import LichenError

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def equal(a: Batch, b: Batch) -> bool:
    return a.n_bytes == b.n_bytes and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "targets", "segment_ids")
    )


def transitions(batch: Batch) -> Counter[tuple[int, int]]:
    """How often which token is to be predicted after which."""
    wanted = batch.targets != -100
    return Counter(zip(batch.tokens[wanted].tolist(), batch.targets[wanted].tolist(), strict=True))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(("batch_size", "seq_len"), [(1, 16), (3, 64), (4, 1000)])
def test_one_pass_predicts_every_token_of_every_document_once(
    dataset: TokenDataset, split: str, batch_size: int, seq_len: int
) -> None:
    documents = dataset.documents(split)
    expected: Counter[tuple[int, int]] = Counter()
    for start, stop in zip(documents.starts[:-1], documents.starts[1:], strict=True):
        tokens = documents.read(start, stop).tolist()
        expected.update(pairwise(tokens))
    found: Counter[tuple[int, int]] = Counter()
    n_bytes = 0
    for batch in Loader(dataset, split, batch_size, seq_len, seed=0).batches():
        assert batch.tokens.shape == batch.targets.shape == batch.segment_ids.shape == (batch_size, seq_len)
        assert (batch.tokens.dtype, batch.segment_ids.dtype) == (torch.int64, torch.int32)
        found += transitions(batch)
        n_bytes += batch.n_bytes
    assert found == expected
    # The first token of a document is never predicted; all other text is.
    firsts = dataset.token_bytes[[documents.read(start, start + 1)[0] for start in documents.starts[:-1]]]
    assert n_bytes == dataset.manifest.splits[split].bytes - firsts.sum()


def test_a_segment_is_one_stretch_of_one_document_and_padding_is_apart(dataset: TokenDataset) -> None:
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    documents = dataset.documents("train")
    everything = documents.read(0, documents.starts[1]).tolist(), dataset.special_ids
    assert everything[0][-1] == everything[1].eos
    text = "\0".join(
        tokenizer.decode(documents.read(start, stop).tolist(), skip_special_tokens=False)
        for start, stop in zip(documents.starts[:-1], documents.starts[1:], strict=True)
    )
    for batch in islice(Loader(dataset, "train", 4, 128, seed=3).batches(), 10):
        for tokens, targets, segments in zip(batch.tokens, batch.targets, batch.segment_ids, strict=True):
            assert torch.equal(segments == -1, targets == -100)
            assert ((targets == -100).long().diff() >= 0).all()  # padding is at the end
            assert (segments[targets != -100].diff() >= 0).all()
            for segment in segments.unique():
                inside = segments == segment
                padding = targets[inside] == -100
                assert padding.all() or not padding.any()
                if not padding.any():
                    # Within a segment the targets are the tokens that follow.
                    assert torch.equal(tokens[inside][1:], targets[inside][:-1])
                    stretch = tokenizer.decode(tokens[inside].tolist(), skip_special_tokens=False)
                    assert stretch.strip("�") in text
                else:
                    assert (tokens[inside] == dataset.special_ids.pad).all()


@SHARED
@given(stop=st.integers(0, 60), seq_len=st.sampled_from([24, 200]), seed=st.integers(0, 5))
def test_restoring_at_any_batch_gives_the_same_batches(
    dataset: TokenDataset, stop: int, seq_len: int, seed: int
) -> None:
    """The corpus gives about 40 batches of 16 x 200, so some of these stops lie in the second epoch."""
    loader = Loader(dataset, "train", 16, seq_len, seed)
    for _ in range(stop):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state()))
    resumed = Loader(dataset, "train", 16, seq_len, seed)
    resumed.restore(state)
    assert resumed.state() == loader.state()
    for _ in range(5):
        assert equal(loader.next_batch(), resumed.next_batch())


@SHARED
@given(world_size=st.sampled_from([1, 2, 3, 6]), steps=st.integers(0, 10))
def test_ranks_share_the_sequence_of_rows_whatever_their_number(
    dataset: TokenDataset, world_size: int, steps: int
) -> None:
    alone = Loader(dataset, "train", 6, 64, seed=1)
    ranks = [Loader(dataset, "train", 6 // world_size, 64, 1, rank, world_size) for rank in range(world_size)]
    for _ in range(steps):
        for loader in (alone, *ranks):
            loader.next_batch()
    assert {json.dumps(loader.state()) for loader in ranks} == {json.dumps(alone.state())}
    whole = alone.next_batch()
    parts = [loader.next_batch() for loader in ranks]
    for rank, part in enumerate(parts):
        assert torch.equal(part.tokens, whole.tokens[rank::world_size])
    assert sum(part.n_bytes for part in parts) == whole.n_bytes


def test_all_ranks_see_equally_many_validation_batches(dataset: TokenDataset) -> None:
    counts, found = [], Counter()
    for rank in range(3):
        batches = list(Loader(dataset, "validation", 5, 100, 0, rank, 3).batches())
        counts.append(len(batches))
        for batch in batches:
            found += transitions(batch)
    assert len(set(counts)) == 1
    assert found.total() == np.sum(np.diff(dataset.documents("validation").starts) - 1)


def test_epochs_and_seeds_shuffle_training_but_never_validation(dataset: TokenDataset) -> None:
    def first(split: str, seed: int) -> tuple[Batch, Batch]:
        loader = Loader(dataset, split, 1, 10**6, seed)  # one row holds much, a window all
        return loader.next_batch(), loader.next_batch()

    assert not torch.equal(first("train", 0)[0].tokens, first("train", 1)[0].tokens)
    assert not torch.equal(first("train", 0)[0].tokens, first("train", 0)[1].tokens)
    assert torch.equal(first("train", 0)[0].tokens, first("train", 0)[0].tokens)
    assert torch.equal(first("validation", 0)[0].tokens, first("validation", 9)[1].tokens)


def test_an_evaluation_does_not_move_training(dataset: TokenDataset) -> None:
    loader, other = Loader(dataset, "train", 4, 64, 0), Loader(dataset, "train", 4, 64, 0)
    list(islice(loader.batches(), 7))
    assert equal(loader.next_batch(), other.next_batch())


def test_padding_is_little(dataset: TokenDataset) -> None:
    batches = list(Loader(dataset, "train", 1, 256, seed=0).batches())
    assert sum(int((batch.targets != -100).sum()) for batch in batches) / (256 * len(batches)) > 0.97


def test_a_position_of_another_run_is_refused(dataset: TokenDataset) -> None:
    state = Loader(dataset, "train", 4, 64, seed=1).state()
    for name, other in (
        ("seq_len", Loader(dataset, "train", 4, 128, seed=1)),
        ("seed", Loader(dataset, "train", 4, 64, seed=2)),
        ("split", Loader(dataset, "validation", 4, 64, seed=1)),
    ):
        with pytest.raises(LichenError, match=f"belongs to {name}"):
            other.restore(state)


def test_an_empty_split_is_refused(corpus: Path, tmp_path: Path) -> None:
    prepare([str(corpus)], tmp_path / "out", vocab_size=300, validation_fraction=0, workers=1)
    with pytest.raises(LichenError, match=r"validation split .* is empty"):
        Loader(TokenDataset.open(tmp_path / "out"), "validation", 1, 8, seed=0)


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
def test_documents_open_with_bos_where_the_family_has_it(corpus: Path, tmp_path: Path, family: str) -> None:
    prepare([str(corpus)], tmp_path / "out", vocab_size=300, family=family, workers=1)
    dataset = TokenDataset.open(tmp_path / "out")
    documents, ids = dataset.documents("train"), dataset.special_ids
    for start, stop in zip(documents.starts[:-1], documents.starts[1:], strict=True):
        tokens = documents.read(start, stop)
        assert (tokens[0], tokens[-1]) == (ids.bos, ids.eos)
        assert not np.isin(tokens[1:-1], [ids.bos, ids.eos]).any()
