import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lichen.data.packing import pack, permute


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_permute_is_a_permutation_and_any_part_of_it_can_be_had_alone(
    size: int, seed: int, epoch: int
) -> None:
    order = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(size))
    part = np.arange(size // 3, size)
    assert np.array_equal(permute(part, size, seed, epoch), order[part])


def test_permute_depends_on_every_part_of_the_key() -> None:
    orders = [tuple(permute(np.arange(50), 50, *key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0))]
    assert len(set(orders)) == len(orders)


def test_permute_shuffles_like_chance() -> None:
    """Where item 0 of 8 goes, over many keys, and how far neighbours move, against what chance would give."""
    places = np.bincount([permute(np.arange(1), 8, seed)[0] for seed in range(4000)], minlength=8)
    chi_squared = ((places - 500) ** 2 / 500).sum()
    assert chi_squared < 29.9  # 7 degrees of freedom, p = 0.0001
    order = permute(np.arange(10_000), 10_000, 1)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 0.04  # 4 standard errors


def test_permute_never_changes() -> None:
    """Runs are resumed with it: these numbers must stay."""
    assert permute(np.arange(10), 10, 7, 3).tolist() == [5, 9, 2, 4, 3, 7, 6, 1, 0, 8]


@given(st.lists(st.integers(1, 64), max_size=200))
def test_pack_places_every_item_once_and_no_row_overflows(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    fills = [sum(lengths[item] for item in row) for row in rows]
    assert all(fill <= 64 for fill in fills)
    # Two rows that fit into one would not have been opened.
    assert all(fills[a] + fills[b] > 64 for a in range(len(fills)) for b in range(a))


def test_pack_fills_real_lengths_well() -> None:
    lengths = np.minimum(512, np.random.default_rng(0).lognormal(5, 1.2, 1024).astype(int) + 1)
    assert lengths.sum() / (len(pack(lengths.tolist(), 512)) * 512) > 0.99
