"""Coefficients fitted online: exponentially weighted ridge regression, one fit a key, each leaning on all of them."""

from collections.abc import Hashable, Sequence

_SOLVE_EVERY = 16
"""Observations after which a key's coefficients are computed anew; sooner while it has little evidence, since then each
one counts.
"""
_TINY = 1e-12
"""Keeps a system solvable in which a feature was always 0."""
_FAMILY_WEIGHT = 16.0
"""Observations of its own that a key needs before they count as much as the whole family's: keys are alike more often
than not, and what is fitted to a dozen noisy times makes equal workers look unequal, and calls queue at one of them.
"""


def solve_nonnegative(matrix: list[list[float]], rhs: list[float]) -> list[float]:
    """The solution of matrix @ c = rhs with the most negative coefficient set to 0 until none is negative.

    `matrix` is symmetric and positive definite (a Gram matrix plus a ridge), so every subsystem has a solution.
    """
    active = list(range(len(rhs)))
    while active:
        part = _solve([[matrix[i][j] for j in active] for i in active], [rhs[i] for i in active])
        worst = min(range(len(active)), key=part.__getitem__)
        if part[worst] >= 0.0:
            result = [0.0] * len(rhs)
            for i, value in zip(active, part, strict=True):
                result[i] = value
            return result
        del active[worst]
    return [0.0] * len(rhs)


def _solve(a: list[list[float]], b: list[float]) -> list[float]:
    """Gaussian elimination; a positive definite matrix needs no pivoting. Both arguments are used up."""
    n = len(b)
    for i in range(n):
        for j in range(i + 1, n):
            ratio = a[j][i] / a[i][i]
            for k in range(i, n):
                a[j][k] -= ratio * a[i][k]
            b[j] -= ratio * b[i]
    for i in range(n - 1, -1, -1):
        b[i] = (b[i] - sum(a[i][k] * b[k] for k in range(i + 1, n))) / a[i][i]
    return b


class _Fit:
    """Weighted sums of one key: gram = sum w x x^T, rhs = sum w x y."""

    __slots__ = ("coefficients", "count", "gram", "pace", "rhs", "seen", "solved")

    def __init__(self, size: int, seen: int) -> None:
        self.gram = [[0.0] * size for _ in range(size)]
        self.rhs = [0.0] * size
        self.count = 0.0
        """Observations, aged."""
        self.pace = 0.0
        """Sum of (usual / size)^2: less than `count` where things take longer than they usually do, and errors,
        which are relative to what they take, weigh less.
        """
        self.coefficients: list[float] = []
        self.seen = seen
        """Observations of the whole family when the sums were last aged."""
        self.solved = -1
        """... and when the coefficients were computed; -1 when they must be."""

    def age(self, factor: float) -> None:
        for row in self.gram:
            row[:] = [value * factor for value in row]
        self.rhs[:] = [value * factor for value in self.rhs]
        self.count *= factor
        self.pace *= factor

    def add(self, x: Sequence[float], y: float, usual: float) -> None:
        size = max(y, usual) or 1.0
        weight = 1 / (size * size)
        for i, xi in enumerate(x):
            row = self.gram[i]
            for j, xj in enumerate(x):
                row[j] += weight * xi * xj
            self.rhs[i] += weight * xi * y
        self.count += 1.0
        self.pace += max(usual * usual * weight, _TINY)


class FitFamily:
    """y ~ c . x with c >= 0 for each key. A key with little or old evidence predicts what the whole family does.

    Errors count relative to what was expected, or to y where that is more: one time of seconds must not outvote a
    hundred of milliseconds.

    Evidence is weighted by decay^age, with age counted in observations of the whole family: a worker that one bad
    sample made look slow, and that gets no work since, is forgiven as others go on.
    """

    def __init__(self, prior: Sequence[float], decay: float = 0.995) -> None:
        """`prior` is believed like one observation, until the family has seen more."""
        self._prior = list(prior)
        self._decay = decay
        self._count = 0
        self._family = _Fit(len(self._prior), 0)
        self._fits: dict[Hashable, _Fit] = {}

    def observe(self, key: Hashable, x: Sequence[float], y: float) -> None:
        """It took y where the features were x (scaled to be about 1)."""
        if self._count % _SOLVE_EVERY == 0:
            self._solved(self._family, self._prior, 1.0)
        self._count += 1
        coefficients = self._family.coefficients or self._prior
        usual = sum(c * xi for c, xi in zip(coefficients, x, strict=True))
        fit = self._fits.get(key)
        if fit is None:
            fit = self._fits[key] = _Fit(len(self._prior), self._count)
        for each in (self._family, fit):
            self._age(each)
            each.add(x, y, usual)

    def coefficients(self, key: Hashable) -> list[float]:
        """The fit of one key; the family's for an unknown one."""
        family = self._solved(self._family, self._prior, 1.0)
        fit = self._fits.get(key)
        return family if fit is None else self._solved(fit, family, _FAMILY_WEIGHT)

    def forget(self, key: Hashable) -> None:
        """Drop one key's own evidence."""
        self._fits.pop(key, None)

    def keys(self) -> list[Hashable]:
        """Keys with evidence of their own."""
        return list(self._fits)

    def _age(self, fit: _Fit) -> None:
        if fit.seen < self._count:
            fit.age(self._decay ** (self._count - fit.seen))
            fit.seen = self._count

    def _solved(self, fit: _Fit, prior: list[float], weight: float) -> list[float]:
        """Ridge towards `prior`, each coefficient of it as sure as `weight` observations of the family make it on
        average: a key that has seen short prompts only knows nothing of its own about long ones.
        """
        if fit.solved >= 0 and self._count - fit.solved < min(_SOLVE_EVERY, 1 + fit.count / 8):
            return fit.coefficients
        self._age(fit)
        size, family = len(prior), self._family
        if not fit.count:
            return prior
        scale = weight * (fit.pace / fit.count) / family.pace
        ridge = [max(scale * family.gram[i][i], _TINY) for i in range(size)]
        matrix = [[fit.gram[i][j] + (ridge[i] if i == j else 0.0) for j in range(size)] for i in range(size)]
        fit.coefficients = solve_nonnegative(matrix, [fit.rhs[i] + ridge[i] * prior[i] for i in range(size)])
        fit.solved = self._count
        return fit.coefficients
