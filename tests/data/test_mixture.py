"""The order of samples: shares, epochs, and nothing that needs replaying."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from jepa.config import ConfigError
from jepa.data.mixture import FullOrder, Mixture, stream


def test_one_source_is_visited_once_an_epoch_in_a_new_order():
    mixture = Mixture([FullOrder(10)], [1.0], seed=3)
    epochs = [[mixture.locate(p)[1] for p in range(10 * e, 10 * e + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [Mixture([FullOrder(10)], [1.0], seed=4).locate(p)[1] for p in range(10)]


def test_weights_are_shares_and_every_source_keeps_its_epochs():
    mixture = Mixture([FullOrder(1000), FullOrder(7)], [3.0, 1.0], seed=0)
    drawn = [mixture.locate(p)[:2] for p in range(4096)]
    assert Counter(s for s, _ in drawn) == {0: 3072, 1: 1024}
    few = [item for s, item in drawn if s == 1]
    assert all(sorted(few[i : i + 7]) == list(range(7)) for i in range(0, 1022, 7))
    near = [s for s, _ in drawn[:200]]
    assert np.mean(near) == pytest.approx(0.25, abs=0.1)  # mixed from the start


def test_positions_are_stateless_and_survive_pickling():
    mixture = Mixture([FullOrder(50), FullOrder(20)], [1.0, 1.0], seed=1)
    straight = [mixture.locate(p) for p in range(3000)]
    for p in (2999, 5, 1023, 1024, 0):
        assert Mixture([FullOrder(50), FullOrder(20)], [1.0, 1.0], seed=1).locate(p) == straight[p]
        assert pickle.loads(pickle.dumps(mixture)).locate(p) == straight[p]


def test_clips_per_video_are_neighbours():
    mixture = Mixture([FullOrder(5)], [1.0], seed=0, clips_per_video=3)
    rows = [mixture.locate(p) for p in range(15)]
    assert [k for _, _, k in rows] == [0, 1, 2] * 5
    assert sorted(item for _, item, _ in rows) == sorted(list(range(5)) * 3)


def test_replacements_and_streams_depend_on_their_key_only():
    mixture = Mixture([FullOrder(100), FullOrder(100)], [1.0, 3.0], seed=0)
    assert mixture.replacement(7, 0) == mixture.replacement(7, 0) != mixture.replacement(7, 1)
    assert np.mean([mixture.replacement(p, 0)[0] for p in range(400)]) == pytest.approx(0.75, abs=0.06)
    assert stream(0, 1, 2).random() == stream(0, 1, 2).random() != stream(0, 2, 1).random()


def test_a_weight_too_small_to_be_drawn_is_an_error():
    with pytest.raises(ConfigError, match="source 1 has less than"):
        Mixture([FullOrder(10), FullOrder(10)], [1.0, 1e-6], seed=0)
