"""Intervals, ROC figures and two-sample distances, on numpy arrays.

All intervals are chosen for the few tracks of an unlearning request: they keep their coverage at n = 8, and at shares
of 0 or 1, where textbook formulas give intervals of no width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95  # confidence of all intervals
GROUPS = 20  # of the jackknife, at most
RESAMPLES = 2000
LEAST_RESAMPLED, MOST_RESAMPLED = 6, 500  # tracks
MOST_NUMBERS = 4_000_000  # random numbers drawn at once
TINY = 1e-9


# ------------------------------------------------------------------------------------------------------ intervals


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Floats], float] | None = None,
    *,
    seed: int,
    bounds: Interval | None = None,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Interval of a mean (or another statistic) over tracks, for few, skewed or bounded values.

    Without bounds: the union of Student's t interval and of the bootstrap-t interval (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 12), the latter at half of the error rate. At n = 8 its simulated
    coverage is .97 for normal, .96 for exponential and .93 for log-normal (σ = 1) values, where Student's alone has
    .95, .90 and .83 (`tests/test_stats.py`). Of fewer than six tracks, and of more than 500, Student's alone.

    With bounds: Gaffke's interval (Learned-Miller and Thomas, "A New Confidence Interval for the Mean of a Bounded
    Random Variable", arXiv 1905.06208): quantiles of the values' mean under Dirichlet weights, with one more value at
    the bound. It has width also where all values are equal; of zeros and ones it is Clopper and Pearson's.

    Args:
        values: [n] or [n, columns], one row per track.
        statistic: maps rows [m, ...] to a number; default: the mean. Its interval is that of its jackknife
            pseudo-values.
        seed: of the resampling.
        bounds: lowest and highest possible value, (0, 1) for shares.
        resamples: number of resamples.

    Returns:
        The interval; None for fewer than two tracks without bounds, for none with bounds, and where a value is not
        finite. Of equal values without bounds it has no width.
    """
    from scipy import stats

    rows = np.asarray(values, dtype=np.float64)
    n = len(rows)
    if n < (2 if bounds is None else 1) or not np.isfinite(rows).all():
        return None
    if statistic is not None:
        whole = statistic(rows)
        rows = n * whole - (n - 1) * np.array([statistic(np.delete(rows, i, 0)) for i in range(n)])
        rows += whole - rows.mean()  # the jackknife's estimate of bias is left out
    rng = np.random.default_rng(seed)
    if bounds is not None:
        return _gaffke_interval(rows, bounds, rng, 5 * resamples)
    centre, error = float(rows.mean()), float(rows.std(ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    low, high = -reach, reach
    if error > TINY * abs(centre) and LEAST_RESAMPLED <= n <= MOST_RESAMPLED:
        drawn = rows[rng.integers(n, size=(resamples, n))]  # [R, n]
        errors = drawn.std(1, ddof=1) / math.sqrt(n)
        spread = errors > TINY * error  # of one track n times over there is no t
        t = (drawn[spread].mean(1) - centre) / errors[spread]
        first, last = np.quantile(t, [(1 - LEVEL) / 4, (3 + LEVEL) / 4])
        low, high = min(low, -float(last)), max(high, -float(first))
    return centre + low * error, centre + high * error


def _gaffke_interval(values: Floats, bounds: Interval, rng: np.random.Generator, draws: int) -> Interval:
    """See `bootstrap_interval`. The mean of the values always lies inside."""
    ends = []
    for bound, quantile in zip(bounds, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], strict=True):
        extended, means = np.append(values, bound), np.empty(draws)
        piece = max(1, MOST_NUMBERS // len(extended))
        for start in range(0, draws, piece):
            weights = rng.standard_exponential((min(piece, draws - start), len(extended)))
            means[start : start + piece] = weights @ extended / weights.sum(1)
        ends.append(float(np.quantile(means, quantile)))
    mean = float(values.mean())
    return max(bounds[0], min(ends[0], mean)), min(bounds[1], max(ends[1], mean))


def share_interval(hits: int, n: int) -> Interval | None:
    """Clopper and Pearson's interval of a share, None for n = 0.

    It has width also at 0 of n and n of n, and covers at least 95 % for every true share. (At n = 8 Wilson's covers
    .85 for some shares near 0 or 1.)
    """
    from scipy import stats

    if n == 0:
        return None
    interval = stats.binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def jackknife_interval(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    of: Sequence[Hashable] | None = None,
) -> Interval | None:
    """Interval of a statistic from leaving out one group of rows at a time, with Student's t of groups - 1.

    For distances between samples, where a bootstrap's repeated rows would themselves look like a difference: they
    add identical pairs to an MMD and take rank from the covariances of a Fréchet distance.

    Args:
        statistic: function of all samples.
        samples: [n, ...] each; their i-th rows belong together.
        of: owner of each row, such as a track: rows of one owner are not independent, and are left out together. By
            default every row has another owner.

    Returns:
        The interval, of at most `GROUPS` groups; None for fewer than three owners.
    """
    rows = [np.asarray(sample) for sample in samples]
    names = range(len(rows[0])) if of is None else of
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(place) < 3:
        return None
    count = min(GROUPS, len(place))
    group = np.array([place[name] % count for name in names])
    left_out = [statistic(*(sample[group != i] for sample in rows)) for i in range(count)]
    return _jackknife(statistic(*rows), left_out)


def _jackknife(centre: float, left_out: ArrayLike) -> Interval:
    """Around a figure, from the figures without one group each: Student's t of groups - 1."""
    from scipy import stats

    figures = np.asarray(left_out, dtype=np.float64)
    n = len(figures)
    spread = math.sqrt((n - 1) / n * float(((figures - figures.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread
    return centre - reach, centre + reach


# ------------------------------------------------------------------------------------------------------------ ROC


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """Area under the ROC curve: P(member scores higher) + P(tie) / 2."""
    return float(placements(members, others).mean())


def placements(members: ArrayLike, others: ArrayLike) -> Floats:
    """For each member the share of others that score lower, ties counted half; their mean is the AUC. [n] -> [n]"""
    ordered = np.sort(np.asarray(others, dtype=np.float64))
    scores = np.asarray(members, dtype=np.float64)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return below / (2 * len(ordered))


def auc_interval(area: float, members: int, others: int) -> Interval:
    """Score interval of an AUC (Newcombe, Statistics in Medicine 25, 2006, part 2, method 5).

    Solves |area - θ| = z √V(θ) with Hanley and McNeil's variance at θ, both sample sizes in its bracket taken as their
    mean. DeLong's and the bootstrap's interval have no width at an AUC of 1, which is where a base model is.
    """
    from scipy import optimize, stats

    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    extra = (members + others) / 2 - 1

    def excess(theta: float) -> float:
        bracket = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 - z * z * theta * (1 - theta) * bracket / (members * others)

    off = 1e-9  # the area itself is a second root where it is 0 or 1
    low = 0.0 if area <= off else float(optimize.brentq(excess, 0.0, area - off))
    high = 1.0 if area >= 1 - off else float(optimize.brentq(excess, area + off, 1.0))
    return low, high


def tpr_at_fpr(members: ArrayLike, others: ArrayLike, fpr: float) -> tuple[float, float]:
    """Highest true-positive rate among thresholds whose false-positive rate is at most `fpr`, and that threshold.

    Scores above the threshold are classified as members. With fewer than 1 / fpr others, no false positive is allowed.
    """
    ordered = np.sort(np.asarray(others, dtype=np.float64))[::-1]
    allowed = min(math.floor(fpr * len(ordered) + 1e-9), len(ordered) - 1)
    threshold = float(ordered[allowed])
    return float((np.asarray(members) > threshold).mean()), threshold


# ------------------------------------------------------------------------------------------------------ distances


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Fréchet distance between the Gaussians fitted to two samples [n, D], [m, D]; biased upward at small n."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return frechet_gaussians(first.mean(0), np.cov(first, rowvar=False), second.mean(0), np.cov(second, rowvar=False))


def frechet_gaussians(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1^½ Σ2 Σ1^½)^½).

    The last trace is the sum of the singular values of Σ1^½ Σ2^½, which stays real, and exact where a covariance is
    singular. A square root of Σ1 Σ2 does not, and eigenvalues of Σ1^½ Σ2 Σ1^½ lose half of the digits to their roots.
    """
    gap = np.asarray(mean1, dtype=np.float64) - np.asarray(mean2, dtype=np.float64)
    sigma1, sigma2 = np.atleast_2d(np.asarray(cov1, np.float64)), np.atleast_2d(np.asarray(cov2, np.float64))
    cross = np.linalg.svd(_root(sigma1) @ _root(sigma2), compute_uv=False).sum()
    distance = gap @ gap + np.trace(sigma1) + np.trace(sigma2) - 2 * cross
    return max(float(distance), 0.0)


def _root(covariance: Floats) -> Floats:
    """Symmetric square root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def random_halves(n: int, *, seed: int, splits: int = 4) -> NDArray[np.bool_]:
    """Random divisions of n rows into halves, for `frechet_inf`: bool [n, splits]."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) % 2 == 0 for _ in range(splits)], 1)


def frechet_inf(x: ArrayLike, y: ArrayLike, halves: ArrayLike) -> float:
    """Fréchet distance extrapolated to n = ∞: FAD∞ (Gui et al., ICASSP 2024, after Chong and Forsyth, 2020).

    The bias is about b / n. It is taken from the line in 1 / n through the distance of all rows and the mean distance
    of halves. The papers fit a line to many subsets drawn with replacement from far more rows than they use; here
    that would correct nothing, since a repeated row adds no rank, and halves without repetition also scatter less.
    Of two samples of one 16-dimensional Gaussian at n = 2 D: distance 5.3, extrapolated -.2 ± .9. Below n = 2 D the
    bias falls otherwise than as 1 / n, and part of it stays. The figure can be negative.

    Args:
        x: [n, D].
        y: [n, D]; i-th rows of x and y belong together.
        halves: bool [n, splits], from `random_halves`; an argument, so that a jackknife does not change the halves.

    Raises:
        ValueError: the samples have different sizes, or a half has fewer than two rows.
    """
    first, second, cuts = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(halves, bool)
    parts = [rows for cut in cuts.T for rows in (cut, ~cut)]
    if first.shape != second.shape or len(cuts) != len(first) or min((rows.sum() for rows in parts), default=0) < 2:
        raise ValueError(f"needs two samples of one size with two rows a half, not {len(first)} and {len(second)} rows")
    whole, part = 1 / len(first), float(np.mean([1 / rows.sum() for rows in parts]))
    of_parts = float(np.mean([frechet_distance(first[rows], second[rows]) for rows in parts]))
    return (part * frechet_distance(first, second) - whole * of_parts) / (part - whole)


def median_bandwidth(x: ArrayLike) -> float:
    """Median distance between two different rows of [n, D]: the usual width of an RBF kernel."""
    from scipy.spatial import distance

    rows = np.asarray(x, dtype=np.float64)
    return float(np.median(distance.pdist(rows))) if len(rows) > 1 else 0.0


def paired_mmd2(x: ArrayLike, y: ArrayLike, bandwidth: float) -> float:
    """Unbiased squared maximum mean discrepancy of two samples whose i-th rows belong together, [n, D] each.

    MMD²_u = 1/(n(n-1)) Σ_{i≠j} k(x_i,x_j) + k(y_i,y_j) - k(x_i,y_j) - k(x_j,y_i), k(a,b) = exp(-|a-b|² / 2σ²)
    (Gretton et al., JMLR 13, 2012, equation 4). Pairs with i = j are left out of the cross term too, so the two rows
    of a pair may depend on one another (here: the same caption and the same noise) and the mean under "no
    difference" is still 0. The figure can be negative.

    Args:
        bandwidth: σ. Take it from one fixed sample, or figures do not compare.

    Raises:
        ValueError: the samples have different sizes, fewer than two rows, or σ is not positive.
    """
    from scipy.spatial import distance

    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(first)
    if first.shape != second.shape or n < 2 or not bandwidth > 0:
        raise ValueError(f"needs two samples of one size ≥ 2 and a width > 0, not {n}, {len(second)} and {bandwidth}")

    def kernel(a: Floats, b: Floats) -> Any:
        return np.exp(-distance.cdist(a, b, "sqeuclidean") / (2 * bandwidth**2))

    cross = kernel(first, second)
    h = kernel(first, first) + kernel(second, second) - cross - cross.T
    return float((h.sum() - np.trace(h)) / (n * (n - 1)))


# ---------------------------------------------------------------------------------------------------------- tests


def holm(pvalues: ArrayLike) -> Floats:
    """p-values adjusted for their number by Holm's step-down method (Scand. J. Statist. 6, 1979), in the order given.

    p̃_(i) = max_{j ≤ i} min(1, (m - j + 1) p_(j)): rejecting where p̃ ≤ α keeps the chance of any false rejection at
    most α, however the tests depend on one another. [m] -> [m]
    """
    given = np.asarray(pvalues, dtype=np.float64)
    order = given.argsort(kind="stable")
    steps = np.minimum(given[order] * (len(given) - np.arange(len(given))), 1.0)
    adjusted: Floats = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def rank_test(
    members: ArrayLike, others: ArrayLike, alternative: Literal["two-sided", "greater"] = "two-sided"
) -> float:
    """Mann-Whitney p-value of "both sets have scores of one distribution".

    Exact up to 100 a set where there are no ties; else by the normal approximation, corrected for ties.

    Args:
        members: [n].
        others: [m].
        alternative: "greater" is the one-sided test of members having higher scores.
    """
    from scipy import stats

    scores = np.concatenate([np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)])
    exact = len(np.unique(scores)) == len(scores) and max(len(np.asarray(members)), len(np.asarray(others))) <= 100
    method: Literal["exact", "asymptotic"] = "exact" if exact else "asymptotic"
    return float(stats.mannwhitneyu(members, others, alternative=alternative, method=method).pvalue)


def conformal_p(members: ArrayLike, others: ArrayLike) -> Floats:
    """For each member the p-value (1 + #{others that score as high}) / (1 + #others) of being one of the others.

    Exact where a member would be exchangeable with the others; at least 1 / (1 + #others). [n] -> [n]
    """
    ordered = np.sort(np.asarray(others, dtype=np.float64))
    above = len(ordered) - np.searchsorted(ordered, np.asarray(members, dtype=np.float64), side="left")
    return np.asarray((1.0 + above) / (1.0 + len(ordered)), dtype=np.float64)


FOLDS = 20  # groups of each set that are left out together, at most
RIDGE = 0.1  # added to the pooled covariance of standardised features
AT_ONCE = 50  # relabellings


def learned_separation(
    members: ArrayLike, others: ArrayLike, *, seed: int, permutations: int = 999
) -> tuple[Floats, float]:
    """Can a linear classifier on several features tell two sets apart, on items that it was not fitted to?

    Fisher's linear discriminant w = (S + .1 I)⁻¹ (μ_members - μ_others), S the pooled covariance within the sets, of
    features standardised over both. For each pair of a member and another item it is fitted without both (of more than
    twenty items, without a twentieth of each set). Leaving out only one would put chance below .5 (Airola et al., "An
    experimental comparison of cross-validation techniques for estimating the area under the ROC curve", 2011). p is the
    share of random relabellings with as high an AUC, the true one included. It is one-sided: the sign is learned.

    Args:
        members: features [n, F], n ≥ 3.
        others: features [m, F], m ≥ 3.
        seed: of the relabellings.
        permutations: number of relabellings; 0 for the AUC alone.

    Returns:
        For each member the share of others that score lower, [n]; their mean is the AUC. And p.

    Raises:
        ValueError: a set has fewer than three items.
    """
    first, second = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if min(len(first), len(second)) < 3:
        raise ValueError(f"needs three items of each set, not {len(first)} and {len(second)}")
    rows, n = np.concatenate([first, second]), len(first)
    spread = rows.std(0)
    rows = (rows - rows.mean(0)) / np.where(spread > TINY, spread, 1.0)
    placed = _cross_fitted(rows, np.arange(len(rows))[None], n)[0]
    rng, as_high = np.random.default_rng(seed), 1
    for start in range(0, permutations, AT_ONCE):
        orders = np.stack([rng.permutation(len(rows)) for _ in range(min(AT_ONCE, permutations - start))])
        as_high += int((_cross_fitted(rows, orders, n).mean(1) >= placed.mean() - TINY).sum())
    return placed, as_high / (1 + permutations)


def _cross_fitted(rows: Floats, orders: NDArray[np.int64], n: int) -> Floats:
    """Placements [P, n] of the first n items of each of P orders among the rest; see `learned_separation`."""
    sets = rows[orders[:, :n]], rows[orders[:, n:]]  # [P, n, F], [P, m, F]
    groups = [np.arange(part.shape[1]) % min(FOLDS, part.shape[1]) for part in sets]
    counts, means, within = [], [], []
    for part, group in zip(sets, groups, strict=True):
        left_out = np.eye(group.max() + 1)[group]  # [items, groups]
        count = len(group) - left_out.sum(0)  # of the set without each group
        mean = (part.sum(1)[:, None] - np.einsum("ig,pif->pgf", left_out, part)) / count[:, None]
        squares = part[..., None] * part[..., None, :]  # [P, items, F, F]
        total = squares.sum(1)[:, None] - np.einsum("ig,pifh->pgfh", left_out, squares)
        counts.append(count)
        means.append(mean)
        within.append(total - count[:, None, None] * mean[..., None] * mean[..., None, :])
    degrees = np.maximum(counts[0][:, None] + counts[1] - 2, 1.0)
    pooled = (within[0][:, :, None] + within[1][:, None]) / degrees[..., None, None]  # [P, groups, groups, F, F]
    gap = means[0][:, :, None] - means[1][:, None]
    weights = np.linalg.solve(pooled + RIDGE * np.eye(rows.shape[1]), gap[..., None])[..., 0]
    pairs = weights[:, groups[0][:, None], groups[1][None]]  # [P, n, m, F]
    scores = (pairs * (sets[0][:, :, None] - sets[1][:, None])).sum(-1)
    return np.asarray(np.where(np.abs(scores) < TINY, 0.5, scores > 0).mean(2), dtype=np.float64)


FLIPS = 10_000  # most sign flips in a max-T test


def least_p(n: int) -> float:
    """The least p that `max_t_test` can find on n pairs."""
    return 2 / 2**n if 2**n <= FLIPS else 1 / (FLIPS + 1)


def max_t_test(differences: ArrayLike, *, draws: int = FLIPS, seed: int = 0) -> Floats:
    """p of each of M paired differences being zero in the median, [M, n] -> [M], adjusted for there being M of them.

    Westfall and Young's single-step max-T ("Resampling-Based Multiple Testing", 1993): the signs of the n pairs are
    flipped, for all M alike, and a statistic counts against the largest of the M under each flip. Exact, by all 2^n
    flips, up to n = 13, and by as many random ones beyond. No p is below `least_p`, whatever M is.

    The statistic is |mean| / root mean square, which orders flips as a paired t does.
    """
    d = np.asarray(differences, float)  # [M, n]
    n = d.shape[1]
    if 2**n <= draws:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # [2^n, n], the first all ones
    else:
        random = np.random.default_rng(seed).integers(0, 2, (draws, n))
        signs = np.concatenate([np.ones((1, n)), 1 - 2 * random])
    size = np.sqrt((d**2).mean(1))  # [M], the same for all flips
    scaled = np.divide(d, size[:, None], out=np.zeros_like(d), where=size[:, None] > 0)
    statistics = np.abs(scaled @ signs.T) / n  # [M, flips]
    largest = statistics.max(0)
    return (largest[None] >= statistics[:, :1] - 1e-12).mean(1)
