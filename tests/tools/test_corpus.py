"""Splits: sizes, disjointness, seeding, and that only blind features decide."""

import numpy as np
from tools.build_assets import corpus


def features(seed=0):
    rng = np.random.default_rng(seed)
    rest = [f"song{i:02d}" for i in range(sum(corpus.SIZES.values()) - len(corpus.ALWAYS_FORGET))]
    return {name: rng.standard_normal(3).tolist() for name in (*corpus.ALWAYS_FORGET, *rest)}


def test_splits_have_their_sizes_and_keep_the_fixed_songs():
    split = corpus.assign_splits(features(), tries=50)
    assert {s: list(split.values()).count(s) for s in corpus.SIZES} == corpus.SIZES
    assert {split[x] for x in corpus.ALWAYS_FORGET} == {"forget"}


def test_splits_are_seeded():
    assert corpus.assign_splits(features(), tries=20) == corpus.assign_splits(features(), tries=20)
    assert corpus.assign_splits(features(), seed=1, tries=20) != corpus.assign_splits(features(), seed=2, tries=20)


def test_more_tries_make_the_sets_more_alike():
    def worst(tries):
        f = features(3)
        split = corpus.assign_splits(f, tries=tries)
        forget, holdout = (np.array([f[i] for i in sorted(f) if split[i] == s]) for s in ("forget", "holdout"))
        return max(abs(corpus.auc(forget[:, k], holdout[:, k]) - 0.5) for k in range(3))

    assert worst(300) < max(worst(1), 0.3)


def test_auc():
    assert corpus.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert corpus.auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert corpus.auc(np.array([0.0]), np.array([1.0, 2.0])) == 0.0
