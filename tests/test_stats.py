"""Against brute force, closed forms, other libraries and simulation."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score, roc_curve

from encore import stats

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=15)


# ------------------------------------------------------------------------------------------------------ intervals


DRAWN = {  # name -> (draws of n, their true mean)
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "negative exponential": (lambda rng, n: -rng.exponential(size=n), -1.0),
    "gamma, shape .5": (lambda rng, n: rng.gamma(0.5, size=n), 0.5),
    "log-normal": (lambda rng, n: np.exp(rng.normal(size=n)), math.exp(0.5)),
    "Student, 3 degrees": (lambda rng, n: rng.standard_t(3, size=n), 0.0),
}
SHARES = {
    "one track in fifty": (lambda rng, n: (rng.uniform(size=n) < 0.02).astype(float), 0.02),
    "one track in ten": (lambda rng, n: (rng.uniform(size=n) < 0.1).astype(float), 0.1),
    "nine tracks in ten": (lambda rng, n: (rng.uniform(size=n) < 0.9).astype(float), 0.9),
    "half": (lambda rng, n: (rng.uniform(size=n) < 0.5).astype(float), 0.5),
    "near 0": (lambda rng, n: rng.beta(0.1, 1.9, n), 0.05),
    "near 0 or 1": (lambda rng, n: rng.beta(0.1, 0.1, n), 0.5),
    "mostly .02, seldom .9": (lambda rng, n: np.where(rng.uniform(size=n) < 0.1, 0.9, 0.02), 0.108),
    "near 1": (lambda rng, n: rng.beta(9, 1, n), 0.9),
}


def coverage(name: str, n: int, runs: int) -> float:
    """Share of simulated samples of n tracks whose interval holds the true mean."""
    draw, mean = {**DRAWN, **SHARES}[name]
    bounds = (0.0, 1.0) if name in SHARES else None
    rng = np.random.default_rng(0)
    intervals = [stats.bootstrap_interval(draw(rng, n), seed=i, bounds=bounds, resamples=1000) for i in range(runs)]
    return float(np.mean([low <= mean <= high for low, high in intervals]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DRAWN, *SHARES])
def test_case_D6_intervals_of_eight_tracks_cover_as_often_as_they_say(name):
    assert coverage(name, 8, 1000) >= 0.93


@pytest.mark.parametrize("name", ["normal", "exponential", "near 0"])
def test_case_D6_intervals_cover_in_a_short_simulation(name):
    assert coverage(name, 8, 400) >= 0.93


@pytest.mark.parametrize("n", [1, 3, 8, 24])
def test_case_D6_a_share_is_covered_whatever_it_truly_is(n):
    intervals = [stats.share_interval(hits, n) for hits in range(n + 1)]
    for share in np.linspace(0.005, 0.995, 199):
        inside = [low <= share <= high for low, high in intervals]
        assert scipy_stats.binom.pmf(np.arange(n + 1), n, share)[inside].sum() >= 0.95


def test_case_D6_shares_that_all_agree_have_an_interval_with_width():
    low, high = stats.bootstrap_interval([1.0] * 8, seed=0, bounds=(0, 1))
    assert high == 1
    assert low == pytest.approx(stats.share_interval(8, 8)[0], abs=0.01)
    low, high = stats.bootstrap_interval([0.4] * 8, seed=0, bounds=(0, 1))
    assert low < 0.37 < 0.4 < 0.43 < high


def test_bootstrap_interval_of_zeros_and_ones_is_clopper_and_pearsons():
    found = stats.bootstrap_interval([0, 0, 1, 0, 0, 1, 0, 0], seed=0, bounds=(0, 1), resamples=40_000)
    assert found == pytest.approx(stats.share_interval(2, 8), abs=0.005)


@pytest.mark.parametrize("n", [2, 3, 5, 501])
def test_bootstrap_interval_of_very_few_and_of_many_is_students(n):
    rng = np.random.default_rng(0)
    for sample in rng.normal(size=(3, n)):
        test = scipy_stats.ttest_1samp(sample, 0).confidence_interval()
        assert stats.bootstrap_interval(sample, seed=0) == pytest.approx((test.low, test.high))


def test_bootstrap_interval_is_never_narrower_than_students_and_reaches_to_the_skewed_side():
    values = np.exp(np.random.default_rng(0).normal(size=8))
    test = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    low, high = stats.bootstrap_interval(values, seed=0)
    assert low <= test.low
    assert high > test.high + (test.high - test.low) / 4


def test_bootstrap_interval_of_few_whole_rows_is_the_jackknifes():
    pairs = np.random.default_rng(0).normal(10, 1, size=(4, 2))
    found = stats.bootstrap_interval(pairs, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed=0)
    expected = stats.jackknife_interval(lambda a, b: a.sum() / b.sum(), pairs[:, 0], pairs[:, 1])
    assert found == pytest.approx(expected)


def test_bootstrap_interval_of_a_constant_has_no_width_and_one_track_has_none():
    assert stats.bootstrap_interval([3.0] * 5, seed=0) == stats.bootstrap_interval([3.0] * 9, seed=0) == (3.0, 3.0)
    assert stats.bootstrap_interval([3.0], seed=0) is None
    assert stats.bootstrap_interval([], seed=0) is stats.bootstrap_interval([], seed=0, bounds=(0, 1)) is None
    assert stats.bootstrap_interval([math.nan] * 8, seed=0, bounds=(0, 1)) is None


def test_bootstrap_interval_depends_on_its_seed_alone():
    values = np.random.default_rng(1).exponential(size=9)
    assert stats.bootstrap_interval(values, seed=4) == stats.bootstrap_interval(values, seed=4)
    assert stats.bootstrap_interval(values, seed=4) != stats.bootstrap_interval(values, seed=5)


def test_bootstrap_interval_takes_a_statistic_of_whole_rows():
    pairs = np.column_stack([np.arange(1.0, 9), 2 * np.arange(1.0, 9)])
    ratio = stats.bootstrap_interval(pairs, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), seed=0)
    assert ratio == pytest.approx((0.5, 0.5))


def test_share_interval_is_clopper_and_pearsons():
    low, high = stats.share_interval(3, 8)
    assert (low, high) == pytest.approx((scipy_stats.beta.ppf(0.025, 3, 6), scipy_stats.beta.ppf(0.975, 4, 5)))
    assert stats.share_interval(0, 8) == pytest.approx((0, 1 - 0.025 ** (1 / 8)))
    assert stats.share_interval(0, 0) is None


def test_jackknife_interval_of_a_mean_is_students():
    values = np.random.default_rng(2).normal(size=12)
    low, high = stats.jackknife_interval(np.mean, values)
    reach = 2.200985160 * values.std(ddof=1) / math.sqrt(12)  # t of 11 degrees of freedom
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert stats.jackknife_interval(np.mean, values[:2]) is None


def test_jackknife_keeps_rows_of_several_samples_together():
    x = np.random.default_rng(3).normal(size=30)
    assert stats.jackknife_interval(lambda a, b: float(np.mean(a - b)), x, x - 1) == pytest.approx((1.0, 1.0))


def test_jackknife_leaves_out_together_what_is_of_one():
    values = np.random.default_rng(4).normal(size=6)
    draws, tracks = np.repeat(values, 4), [track for track in "abcdef" for _ in range(4)]
    assert stats.jackknife_interval(np.mean, draws, of=tracks) == pytest.approx(
        stats.jackknife_interval(np.mean, values)
    )
    assert stats.jackknife_interval(np.mean, draws, of=["a"] * 12 + ["b"] * 12) is None


# ------------------------------------------------------------------------------------------------------------ ROC


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_in_order(members, others):
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert stats.auc(members, others) == pytest.approx(np.mean(pairs))
    labels = [1] * len(members) + [0] * len(others)
    assert stats.auc(members, others) == pytest.approx(roc_auc_score(labels, members + others))


@given(SCORES, SCORES)
def test_placements_are_each_members_own_auc(members, others):
    expected = [np.mean([(m > o) + (m == o) / 2 for o in others]) for m in members]
    assert stats.placements(members, others) == pytest.approx(expected)


@given(SCORES, SCORES, st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5]))
def test_tpr_at_fpr_is_the_best_allowed_point_of_the_roc(members, others, fpr):
    labels = [1] * len(members) + [0] * len(others)
    false, true, _ = roc_curve(labels, members + others, drop_intermediate=False)
    rate, threshold = stats.tpr_at_fpr(members, others, fpr)
    assert rate == pytest.approx(true[false <= fpr + 1e-12].max())
    assert np.mean(np.array(others) > threshold) <= fpr


@given(st.floats(0, 1), st.integers(2, 40), st.integers(2, 40))
def test_auc_interval_holds_the_area_and_mirrors(area, members, others):
    low, high = stats.auc_interval(area, members, others)
    assert 0 <= low <= area <= high <= 1
    assert high > low
    assert stats.auc_interval(1 - area, members, others) == pytest.approx((1 - high, 1 - low), abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_auc_interval_covers_about_as_often_as_it_says(shift):
    rng = np.random.default_rng(0)
    true = 0.5 * (1 + math.erf(shift / 2))  # P(N(shift, 1) > N(0, 1))
    areas = [stats.auc(rng.normal(shift, 1, 8), rng.normal(size=10)) for _ in range(600)]
    intervals = {area: stats.auc_interval(area, 8, 10) for area in set(areas)}
    covered = np.mean([intervals[area][0] <= true <= intervals[area][1] for area in areas])
    assert covered >= 0.92


def test_auc_interval_narrows_like_hanley_and_mcneil_with_more_tracks():
    low, high = stats.auc_interval(0.8, 500, 500)
    variance = 0.8 * 0.2 / 250_000 * (1 + 499 * (0.2 / 1.2 + 0.8 / 1.8))
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.05)


# ------------------------------------------------------------------------------------------------------ distances


def test_frechet_distance_of_known_gaussians():
    assert stats.frechet_gaussians([0.0], [[4.0]], [3.0], [[1.0]]) == pytest.approx(9 + (2 - 1) ** 2)
    assert stats.frechet_gaussians([0, 0], np.diag([1, 9]), [1, 2], np.diag([4, 1])) == pytest.approx(5 + 1 + 4)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 9))
    first, second = a @ a.T, b @ b.T
    expected = np.trace(first + second) - 2 * np.trace(linalg.sqrtm(first @ second)).real
    assert stats.frechet_gaussians(np.zeros(6), first, np.zeros(6), second) == pytest.approx(expected)


def test_frechet_distance_keeps_its_digits_where_covariances_are_nearly_singular():
    """With one set of axes it is that of the deviations, which here fall by nine decades: variances by eighteen."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0]
    first, second = 10 ** -np.linspace(0, 9, 32), 1.1 * 10 ** -np.linspace(0, 9, 32)
    found = stats.frechet_gaussians(np.zeros(32), (axes * first**2) @ axes.T, np.zeros(32), (axes * second**2) @ axes.T)
    assert found == pytest.approx(((first - second) ** 2).sum(), rel=1e-10)


def test_frechet_distance_of_singular_covariances_stays_real_and_not_negative():
    x = np.random.default_rng(0).normal(size=(5, 40))  # rank 4 of 40
    assert stats.frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    assert stats.frechet_distance(x, x) >= 0
    assert stats.frechet_distance(x, x + 1) == pytest.approx(40)


def test_frechet_distance_of_one_gaussian_with_itself_is_bias_at_small_n():
    rng = np.random.default_rng(0)
    assert 70 < stats.frechet_distance(*rng.normal(size=(2, 100, 128))) < 100


def test_frechet_inf_is_where_the_line_through_the_distances_meets_endless_samples():
    """In one dimension the distance is worked out by hand; halves of an odd number of rows differ by one."""
    x, y = np.random.default_rng(0).normal(size=(2, 11))
    halves = stats.random_halves(11, seed=0, splits=2)
    assert {tuple(cut) for cut in (halves.sum(0), (~halves).sum(0))} == {(6, 6), (5, 5)}

    def distance(rows):
        return (x[rows].mean() - y[rows].mean()) ** 2 + (x[rows].std(ddof=1) - y[rows].std(ddof=1)) ** 2

    every = np.ones(11, bool)
    points = [(1 / 11, distance(every)), ((1 / 6 + 1 / 5) / 2, np.mean([distance(h) for h in [*halves.T, *~halves.T]]))]
    slope, intercept = np.polyfit(*zip(*points, strict=True), 1)
    assert stats.frechet_inf(x[:, None], y[:, None], halves) == pytest.approx(intercept)
    assert slope > 0


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_frechet_inf_takes_the_bias_off_and_its_jackknife_covers_the_distance(shift):
    dim, n, rng, found, covered = 8, 32, np.random.default_rng(0), [], []
    for seed in range(12):
        sets = rng.normal(size=(n, dim)), shift + rng.normal(size=(n, dim))
        halves = stats.random_halves(n, seed=seed)
        found.append([stats.frechet_distance(*sets), stats.frechet_inf(*sets, halves)])
        low, high = stats.jackknife_interval(stats.frechet_inf, *sets, halves)
        covered.append(low <= dim * shift**2 <= high)
    (biased, corrected), (_, spread) = np.mean(found, 0), np.std(found, 0)
    assert biased - dim * shift**2 > 0.7, "there is a bias to take off"
    assert abs(corrected - dim * shift**2) < 3 * spread / math.sqrt(len(found))
    assert np.mean(covered) >= 0.75


def test_frechet_inf_of_a_sample_with_itself_is_nothing_and_wants_two_rows_a_half():
    x = np.random.default_rng(0).normal(size=(12, 3))
    assert stats.frechet_inf(x, x, stats.random_halves(12, seed=0)) == pytest.approx(0, abs=1e-12)
    for rows, others, n in ((12, 11, 12), (12, 12, 11), (3, 3, 3)):
        with pytest.raises(ValueError, match="two rows a half"):
            stats.frechet_inf(x[:rows], x[:others], stats.random_halves(n, seed=0))


@settings(max_examples=25)
@given(st.integers(3, 9), st.integers(1, 4), st.integers(0, 100))
def test_mmd_is_the_double_loop(n, dim, seed):
    x, y = np.random.default_rng(seed).normal(size=(2, n, dim))

    def k(a, b):
        return math.exp(-((a - b) ** 2).sum() / (2 * 1.3**2))

    pairs = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i in range(n) for j in range(n) if i != j
    ]
    assert stats.paired_mmd2(x, y, 1.3) == pytest.approx(np.mean(pairs))


def test_mmd_is_unbiased_also_where_the_rows_of_a_pair_depend_on_one_another():
    rng = np.random.default_rng(0)
    figures = []
    for _ in range(3000):
        shared = rng.normal(size=(6, 2))  # the caption both models play
        figures.append(stats.paired_mmd2(*(shared + 0.3 * rng.normal(size=(2, 6, 2))), 1.0))
    assert abs(np.mean(figures)) < 4 * np.std(figures) / math.sqrt(len(figures))
    assert np.std(figures) > 0


def test_mmd_of_two_gaussians_has_its_closed_form_as_mean():
    rng = np.random.default_rng(0)
    figures = [stats.paired_mmd2(rng.normal(size=(8, 1)), rng.normal(1.5, 1, (8, 1)), 1.0) for _ in range(4000)]
    # E k(a, b) = √(σ²/(σ²+2)) exp(-δ²/(2(σ²+2))) for a, b ~ N(·, 1) whose means differ by δ, σ = 1
    expected = 2 * math.sqrt(1 / 3) * (1 - math.exp(-(1.5**2) / 6))
    assert np.mean(figures) == pytest.approx(expected, abs=4 * np.std(figures) / math.sqrt(4000))


def test_mmd_of_a_sample_with_itself_is_zero_and_nonsense_is_refused():
    x = np.random.default_rng(0).normal(size=(7, 3))
    assert stats.paired_mmd2(x, x, 1.0) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two samples of one size"):
        stats.paired_mmd2(x, x[:5], 1.0)
    with pytest.raises(ValueError, match="width"):
        stats.paired_mmd2(x, x, 0.0)


def test_median_bandwidth():
    assert stats.median_bandwidth([[0.0], [1.0], [3.0]]) == 2.0
    assert stats.median_bandwidth([[1.0]]) == 0.0


# ---------------------------------------------------------------------------------------------------------- tests


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_procedure_rejects(pvalues):
    """The procedure itself: step down the sorted p-values, and stop at the first above α / (m - j + 1)."""
    adjusted = stats.holm(pvalues)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for step, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
            if pvalues[index] * (len(pvalues) - step) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def test_rank_test_is_that_of_all_permutations():
    members, others = [3.0, 5.0, 6.0], [1.0, 2.0, 4.0, 0.5]
    scores = members + others
    observed = abs(stats.auc(members, others) - 0.5)
    splits = list(itertools.combinations(range(7), 3))
    extreme = [
        abs(stats.auc([scores[i] for i in split], [scores[i] for i in range(7) if i not in split]) - 0.5)
        >= observed - 1e-12
        for split in splits
    ]
    assert stats.rank_test(members, others) == pytest.approx(np.mean(extreme))


def test_rank_test_is_exact_also_where_both_sets_have_more_than_eight():
    @functools.cache
    def orders(members, others, pairs):
        """Orders in which so many pairs have the member behind (Mann and Whitney's recursion)."""
        if not members or not others:
            return int(pairs == 0)
        return orders(members - 1, others, pairs - others) + orders(members, others - 1, pairs) if pairs >= 0 else 0

    members, others = range(9), [x + 4.5 for x in range(9)]
    behind = sum(m > o for m in members for o in others)
    expected = 2 * sum(orders(9, 9, pairs) for pairs in range(behind + 1)) / math.comb(18, 9)
    assert stats.rank_test(members, others) == pytest.approx(expected, rel=1e-12)


def test_rank_test_of_ties_is_corrected_for_them():
    found = stats.rank_test([1.0, 2.0, 2.0, 3.0], [2.0, 2.0, 4.0, 5.0])
    assert found == scipy_stats.mannwhitneyu([1, 2, 2, 3], [2, 2, 4, 5], method="asymptotic").pvalue


def test_conformal_p_counts_those_at_least_as_high_and_itself():
    assert stats.conformal_p([5.0, 2.0, 0.0], [1.0, 2.0, 3.0]).tolist() == [0.25, 0.75, 1.0]


def test_a_learned_separation_is_a_discriminant_fitted_without_each_pair():
    rng = np.random.default_rng(3)
    members, others = rng.normal(size=(4, 3)) + np.array([0.8, 0, 0]), rng.normal(size=(5, 3))
    found, p = stats.learned_separation(members, others, seed=0)
    everything = np.concatenate([members, others])
    centre, spread = everything.mean(0), everything.std(0)
    a, b = (members - centre) / spread, (others - centre) / spread
    for i in range(4):
        wins = []
        for j in range(5):
            left, right = np.delete(a, i, 0), np.delete(b, j, 0)
            pooled = (np.cov(left.T, ddof=0) * 3 + np.cov(right.T, ddof=0) * 4) / 5
            weights = np.linalg.inv(pooled + 0.1 * np.eye(3)) @ (left.mean(0) - right.mean(0))
            wins.append(weights @ a[i] > weights @ b[j])
        assert found[i] == pytest.approx(np.mean(wins))
    assert 0 < p <= 1
    far, p = stats.learned_separation(members + 9, others, seed=0)
    assert far.mean() == 1
    assert p < 0.05


def test_a_learned_separation_of_many_leaves_groups_out_and_of_few_is_refused():
    rng = np.random.default_rng(0)
    found, p = stats.learned_separation(rng.normal(size=(50, 2)) + 1, rng.normal(size=(45, 2)), seed=0)
    assert found.mean() > 0.7
    assert p == pytest.approx(0.001)
    with pytest.raises(ValueError, match="three items"):
        stats.learned_separation(np.ones((2, 2)), np.ones((5, 2)), seed=0)
