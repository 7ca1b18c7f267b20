import numpy as np
import pytest

from vllm_mxext.native.sampling.noise import philox4x32, uniforms


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert philox4x32(counter, key) == expected
    assert tuple(int(word[0]) for word in philox4x32(words(*counter), words(*key))) == expected


@pytest.mark.promise("SAMP-2")
def test_noise_depends_on_seed_and_position_only():
    seeds = np.arange(64, dtype=np.uint64) + np.uint64(2**63)
    positions = np.arange(64, dtype=np.int64) * 2**30
    together = uniforms(seeds, positions)
    alone = [uniforms(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(64)]
    assert together.tolist() == alone
    assert len(set(together.tolist())) == 64
    assert uniforms(seeds, positions + 1).tolist() != together.tolist()
    assert uniforms(seeds + np.uint64(1), positions).tolist() != together.tolist()


def test_noise_is_uniform_over_positions_and_over_seeds():
    count = 100_000
    numbers, zeros = np.arange(count), np.zeros(count, dtype=np.int64)
    for noise in (
        uniforms(zeros.astype(np.uint64), numbers),
        uniforms(numbers.astype(np.uint64), zeros),
    ):
        assert noise.min() >= 0
        assert noise.max() < 1
        counts = np.histogram(noise, bins=100, range=(0, 1))[0]
        chi_square = ((counts - count / 100) ** 2 / (count / 100)).sum()
        assert chi_square < 149.4  # 99.9% quantile of chi-square with 99 degrees of freedom
        assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01
