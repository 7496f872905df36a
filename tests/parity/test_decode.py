"""The step of static shape against the ordinary pass, on models that transformers built."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lichen.errors import LichenError
from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.ops import native
from lichen.serve import decode as decode_module
from lichen.serve.decode import Decoder
from lichen.serve.generate import generate
from lichen.serve.sampling import SamplingParams
from lichen.weights.load import load_model
from tests.conftest import read

from .conftest import VOCAB_SIZE, Oracle

GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> Transformer:
    return load_model(oracle.folder)


@pytest.fixture
def static(model: Transformer) -> None:
    """For what is said of the step of static shape alone."""
    if not Contiguous(model.spec, 1, 64).is_whole:
        pytest.skip("windows and compressed entries are continued by ordinary passes")


def prompt(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed))


def test_greedy_text_is_that_of_the_ordinary_pass(model: Transformer, request: pytest.FixtureRequest) -> None:
    ids = prompt(12).tolist()
    ordinary = list(generate(model, ids, GREEDY, eos_ids=()))
    request.getfixturevalue("as_accelerator")
    assert list(generate(model, ids, GREEDY, eos_ids=())) == ordinary
    end = ordinary[9]
    assert list(generate(model, ids, GREEDY, eos_ids={end})) == ordinary[: ordinary.index(end)]


def test_recorded_kernels_repeat_the_ordinary_pass(model: Transformer, oracle: Oracle, static: None) -> None:
    """Of sequences of different lengths: the texts of transformers, and its logits at every step."""
    rows = [prompt(length, length) for length in (3, 11, 7)]
    storage = Contiguous(model.spec, len(rows), 40)
    with torch.no_grad():
        hidden = model(torch.cat(rows), storage.take([len(row) for row in rows]))
        last = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
        decoder = Decoder(model, storage, GREEDY, torch.Generator())
        decoder.enter(model.logits(hidden[last]))
        columns, logits = [decoder.next_B.tolist()], []
        for _ in range(24):
            decoder.step()
            assert decoder._recorded is not None
            logits.append(decoder._recorded[1].clone())
            columns.append(decoder.next_B.tolist())
    for index, row in enumerate(rows):
        text = torch.tensor([column[index] for column in columns])
        expected = oracle.logits(torch.cat([row, text])[None])[0, len(row) - 1 : -1]
        assert torch.equal(text, expected.argmax(-1))
        ours = torch.stack([step[index] for step in logits])
        assert (ours - expected[1:]).abs().max() < 1e-5 * expected.abs().max()


def test_without_kernels_the_text_is_the_same(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(12).tolist()
    recorded = list(generate(model, ids, GREEDY, eos_ids=()))
    monkeypatch.setattr(native, "library", lambda: None)
    assert list(generate(model, ids, GREEDY, eos_ids=())) == recorded


@pytest.mark.parametrize("few", [0, 64], ids=["grouped products", "gathered experts"])
def test_sequences_of_different_lengths_together(
    model: Transformer,
    oracle: Oracle,
    as_accelerator: None,
    monkeypatch,
    few: int,
) -> None:
    """Each text is what transformers writes of it alone; the logits of every step are those of one pass."""
    monkeypatch.setattr("lichen.ops.experts_grouped.FEW_COPIES", few)
    monkeypatch.setattr(decode_module, "SMALLEST_REACH", 16)  # and so the reach grows on the way
    rows = [prompt(length, length) for length in (3, 11, 7)]
    storage = Contiguous(model.spec, len(rows), 40)
    seen: list[Tensor] = []
    logits_of = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: seen.append(logits_of(hidden)) or seen[-1])
    with torch.no_grad():
        hidden = model(torch.cat(rows), storage.take([len(row) for row in rows]))
        last = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
        decoder = Decoder(model, storage, GREEDY, torch.Generator())
        decoder.enter(model.logits(hidden[last]))
        columns = list(decoder.texts(24))
    assert storage.lengths == [len(row) + 24 for row in rows]
    for index, row in enumerate(rows):
        text = torch.tensor([column[index] for column in columns])
        whole = torch.cat([row, text])
        expected = oracle.logits(whole[None])[0, len(row) - 1 :]
        assert torch.equal(text, expected[:-1].argmax(-1))
        ours = torch.stack([logits[index] for logits in seen])
        assert (ours - expected[:-1]).abs().max() < 1e-5 * expected.abs().max()


def test_a_sequence_enters_while_others_are_continued(model: Transformer, as_accelerator: None) -> None:
    """As in a server: its slot is freed, filled anew, and its text is the one that it has alone."""
    first, second, third = (prompt(length, length).tolist() for length in (9, 4, 6))
    alone = {len(ids): list(generate(model, ids, GREEDY, eos_ids=())) for ids in (first, second, third)}
    storage = Contiguous(model.spec, 2, 60)
    decoder = Decoder(model, storage, GREEDY, torch.Generator())
    with torch.no_grad():
        hidden = model(torch.tensor(first + second), storage.take([9, 4]))
        decoder.enter(model.logits(hidden[[8, 12]]))
        before = list(decoder.texts(5))
        storage.free(1)
        hidden = model(torch.tensor(third), storage.take([6], [1]))
        decoder.enter(model.logits(hidden[-1:]), [1])
    after = list(decoder.texts(7))
    assert [column[0] for column in before] + [column[0] for column in after[1:]] == alone[9][:13]
    assert [column[1] for column in before] == alone[4][:6]
    assert [column[1] for column in after] == alone[6][:8]


def test_graphs_are_played_with_what_is_new(
    model: Transformer, static: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way from a prompt to graphs, one for the first places and one for more, and back; they themselves
    are a stand-in, which computes nothing while it is captured."""
    ids = prompt(12).tolist()
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=30)
    ordinary = list(generate(model, ids, params, eos_ids=()))
    request.getfixturevalue("graphs")
    monkeypatch.setattr(decode_module, "SMALLEST_REACH", 16)
    made: list[int] = []
    capture, play = Decoder._captured, Decoder._play

    def captured(decoder: Decoder, reach: int) -> object:
        passes: list[int] = []
        # The last of the three is the captured one.
        monkeypatch.setattr(Decoder, "_play", lambda d, r: passes.append(r) or len(passes) == 3 or play(d, r))
        graph = capture(decoder, reach)
        monkeypatch.setattr(Decoder, "_play", play)
        assert passes == [reach] * 3
        graph.play = lambda: play(decoder, reach)
        made.append(reach)
        return graph

    monkeypatch.setattr(Decoder, "_captured", captured)
    assert list(generate(model, ids, params, eos_ids=())) == ordinary
    assert made == [16, 32, 42]


def test_a_seed_draws_what_the_ordinary_pass_draws(
    model: Transformer, request: pytest.FixtureRequest
) -> None:
    params = SamplingParams(temperature=0.7, top_k=50, top_p=0.95, seed=3, max_tokens=12)
    ordinary = list(generate(model, [5, 6, 7], params, eos_ids=()))
    request.getfixturevalue("as_accelerator")
    assert list(generate(model, [5, 6, 7], params, eos_ids=())) == ordinary


def test_weights_that_are_not_numbers_are_told(model: Transformer, as_accelerator: None, monkeypatch) -> None:
    hidden = model.logits
    monkeypatch.setattr(model, "logits", lambda x: hidden(x) * torch.nan)
    with pytest.raises(LichenError, match="not a number"):
        list(generate(model, [5, 6, 7], GREEDY, eos_ids=()))


def test_a_step_reads_nothing_back(model: Transformer, monkeypatch, static: None) -> None:
    """On the meta device, where there is nothing to read: whatever asks for a number fails."""
    monkeypatch.setattr(Tensor, "exponential_", lambda clocks, generator: clocks)  # has no form there
    place = torch.device("meta")
    nothing = Transformer(model.spec, torch.bfloat16).to(place)
    storage = Contiguous(model.spec, 3, 40, torch.bfloat16, place)
    storage.lengths = [5, 9, 2]
    for temperature in (0.0, 0.8):
        params = SamplingParams(temperature=temperature, top_k=20, top_p=0.9)
        decoder = Decoder(nothing, storage, params, torch.Generator())
        for _ in range(2):
            decoder._play(32)


def test_the_context_is_filled_and_not_exceeded(model: Transformer, as_accelerator: None) -> None:
    storage = Contiguous(model.spec, 1, 10)
    logits = read(model, prompt(6)[None], storage)[:, -1]
    decoder = Decoder(model, storage, GREEDY, torch.Generator())
    decoder.enter(logits)
    assert len(list(decoder.texts(4))) == 5
    assert storage.lengths == [10]
