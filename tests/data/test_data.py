"""The data sets and how they are divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import datasets

from poise.data import (
    TextCorpus,
    load_breast_cancer,
    load_coin_flips,
    load_diabetes,
    load_digits,
    load_text,
    standardize,
    train_validation_split,
)


@pytest.mark.parametrize(
    ("load", "shape", "dtype", "classes"),
    [
        (load_digits, (1797, 64), torch.int64, 10),
        (load_breast_cancer, (569, 30), torch.int64, 2),
        (load_diabetes, (442, 10), torch.float32, 0),
    ],
)
def test_shapes_types_and_names(load, shape, dtype, classes):
    data = load()
    assert data.inputs.shape == shape
    assert data.inputs.dtype == torch.float32
    assert data.targets.shape == shape[:1]
    assert data.targets.dtype == dtype
    assert len(data) == shape[0]
    assert len(data.input_names) == shape[1]
    assert len(data.target_names) == classes
    if classes:
        assert set(data.targets.tolist()) == set(range(classes))
    assert torch.equal(load().inputs, data.inputs)


def test_inputs_are_on_their_own_scale():
    assert load_digits().inputs.unique().tolist() == list(range(17))
    diabetes = load_diabetes()
    assert set(diabetes.inputs[:, diabetes.input_names.index("sex")].tolist()) == {1.0, 2.0}
    # scikit-learn's own columns are these, centred and scaled to length 1.
    centred = diabetes.inputs.double() - diabetes.inputs.double().mean(0)
    np.testing.assert_allclose(centred / centred.norm(dim=0), datasets.load_diabetes().data, atol=1e-6)


def test_a_loaded_data_set_belongs_to_the_caller():
    first = load_digits()
    first.inputs.zero_()
    assert load_digits().inputs.sum() > 0


def test_coin_flips_have_the_totals_of_the_paper():
    coins = load_coin_flips()
    assert len(coins) == len(set(coins.people)) == 48
    assert coins.flips.sum() == 350_757
    assert coins.same.sum() == 178_078
    assert coins.heads.sum() == 175_420
    assert coins.started_heads.sum() == 174_915


def test_coin_flips_are_in_ascending_order_and_without_the_four_most_biased_people_have_the_total_of_the_paper():
    coins = load_coin_flips()
    share = coins.same / coins.flips
    assert np.all(np.diff(share) >= 0)
    assert (share > 0.53).sum() == 4
    assert coins.flips[share <= 0.53].sum() == 338_985
    with pytest.raises(ValueError, match="read-only"):
        coins.hsame[0] = 0


@pytest.fixture(scope="module")
def corpus() -> TextCorpus:
    return load_text()


def test_the_text_is_long_english_and_the_same_each_time(corpus):
    assert len(corpus) > 300_000
    assert corpus.text.count(" the ") > 3000
    assert load_text().text == corpus.text
    assert corpus.ids.dtype == torch.int64
    assert corpus.ids.shape == (len(corpus),)


def test_the_vocabulary_is_the_63_most_frequent_characters_and_one_for_the_others(corpus):
    assert len(corpus.vocabulary) == len(set(corpus.vocabulary)) == 64
    counts = torch.bincount(corpus.ids, minlength=64)
    assert counts.sum() == len(corpus)
    assert torch.all(counts[:-1].diff() <= 0)
    rare = set(corpus.text) - set(corpus.vocabulary)
    assert all(corpus.text.count(character) <= counts[62] for character in rare)
    assert counts[63] == sum(map(corpus.text.count, rare))


def test_text_goes_there_and_back(corpus):
    sample = corpus.text[:5000]
    decoded = corpus.decode(corpus.encode(sample))
    assert decoded == "".join(c if c in corpus.vocabulary else corpus.vocabulary[-1] for c in sample)
    assert corpus.decode(corpus.encode("the 漢")) == "the \N{REPLACEMENT CHARACTER}"
    assert corpus.encode("").shape == (0,)


def test_the_text_is_divided_into_beginning_and_end(corpus):
    train, held_out = corpus.train_validation_split()
    assert torch.equal(torch.cat([train, held_out]), corpus.ids)
    assert len(held_out) == round(0.1 * len(corpus))


def test_bad_input_of_the_text():
    small = TextCorpus.of_text("abba c", characters=2)
    assert small.vocabulary == ("a", "b", "\N{REPLACEMENT CHARACTER}")
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 3\), got values from -1 to 3"):
        small.decode(torch.tensor([-1, 3]))
    with pytest.raises(ValueError, match="text must not be empty"):
        TextCorpus.of_text("")
    with pytest.raises(ValueError, match="characters must be at least 1, got 0"):
        TextCorpus.of_text("a", characters=0)
    with pytest.raises(ValueError, match=r"validation must lie in \(0, 1\), got 1.0"):
        small.train_validation_split(1.0)
    with pytest.raises(ValueError, match="leaves a part empty"):
        small.train_validation_split(0.01)


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 5))
def test_the_parts_are_disjoint_complete_and_aligned(length, validation, seed):
    numbers, tensor = np.arange(length), torch.arange(length) * 10
    assume(np.ceil(validation * length) < length)
    parts = train_validation_split(numbers, tensor, validation=validation, seed=seed)
    again = train_validation_split(numbers, validation=validation, seed=seed)
    assert sorted(np.concatenate(parts[:2])) == list(range(length))
    assert parts[1].size == np.ceil(validation * length)
    assert (parts[2] == torch.from_numpy(parts[0]) * 10).all()
    assert (parts[3] == torch.from_numpy(parts[1]) * 10).all()
    np.testing.assert_array_equal(parts[0], again[0])


def test_seeds_differ():
    first, second = (train_validation_split(np.arange(100), seed=seed)[1] for seed in (0, 1))
    assert set(first) != set(second)


def test_stratified_parts_hold_each_label_in_proportion():
    data = load_breast_cancer()
    _, _, train, held_out = train_validation_split(data.inputs, data.targets, stratify=data.targets)
    whole = data.targets.float().mean()
    assert abs(train.float().mean() - whole) < 1 / len(train)
    assert abs(held_out.float().mean() - whole) < 1 / len(held_out)


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ((), {}, ValueError, "at least one array"),
        (([1, 2, 3],), {}, TypeError, "tensors or numpy arrays, got list"),
        ((np.arange(3), np.arange(4)), {}, ValueError, r"one length, got \[3, 4\]"),
        ((np.arange(3),), {"stratify": [0]}, ValueError, r"one length, got \[3, 1\]"),
        ((np.arange(1),), {}, ValueError, "at least 2 samples, got 1"),
        ((np.array(1.0),), {}, ValueError, "first axis"),
        ((np.arange(3),), {"validation": 0.0}, ValueError, r"validation must lie in \(0, 1\), got 0.0"),
        ((np.arange(3),), {"validation": float("nan")}, ValueError, "validation must lie"),
        ((np.arange(6),), {"stratify": [0, 0, 0, 0, 0, 1]}, ValueError, "least populated class"),
    ],
)
def test_bad_input_of_the_split(arrays, options, error, message):
    with pytest.raises(error, match=message):
        train_validation_split(*arrays, **options)


def test_standardize_uses_the_scale_of_the_training_part():
    train, held_out = train_validation_split(load_digits().inputs)
    scaled, other = standardize(train, held_out)
    constant = train.std(0) == 0
    assert constant.any()
    assert torch.allclose(scaled.mean(0), torch.zeros(64), atol=1e-5)
    assert torch.allclose(scaled.std(0, correction=0)[~constant], torch.ones(1), atol=1e-5)
    assert torch.equal(scaled[:, constant], torch.zeros(len(train), int(constant.sum())))
    mean, std = train[:, ~constant].mean(0), train[:, ~constant].std(0, correction=0)
    assert torch.allclose(other[:, ~constant], (held_out[:, ~constant] - mean) / std, atol=1e-4)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), "floating-point, got torch.int64"),
        (torch.zeros(1, 2), "at least 2 samples, got 1"),
        (torch.tensor([[0.0], [float("nan")]]), "finite"),
    ],
)
def test_bad_input_of_standardize(train, message):
    with pytest.raises(ValueError, match=message):
        standardize(train)
