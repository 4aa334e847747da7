import torch

from engine.runtime.noise import seed_bits, uniform


def splitmix_by_hand(seed: int, position: int) -> float:
    """The same mixer in Python's unbounded integers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    return (mix((mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) & mask) >> 11) / 2**53


def test_equals_the_mixer_in_plain_integers() -> None:
    cases = [
        (seed, position) for seed in (0, 1, 12345, (1 << 63) - 1, 1 << 63, (1 << 64) - 1) for position in (0, 1, 9999)
    ]
    seeds = torch.tensor([seed_bits(seed) for seed, _ in cases])
    positions = torch.tensor([position for _, position in cases])
    assert uniform(seeds, positions).tolist() == [splitmix_by_hand(seed, position) for seed, position in cases]


def test_is_uniform_along_positions_and_along_seeds() -> None:
    count = torch.arange(100_000)
    for numbers in (uniform(torch.full_like(count, 7), count), uniform(count, torch.full_like(count, 7))):
        assert numbers.min() >= 0 and numbers.max() < 1
        histogram = torch.histc(numbers, bins=100, min=0, max=1)
        chi_square = ((histogram - 1000) ** 2 / 1000).sum()
        assert chi_square < 170  # 99 degrees of freedom: p = 1e-5
        neighbours = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
        assert neighbours.abs() < 0.015
