import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.hashing import hash_id
from pinrec.sketch import CountMinSketch


def hashes(ids):
    return np.array([hash_id(str(i)) for i in ids], np.uint64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=400))
def test_never_under_the_true_frequency_and_near_it_while_cells_are_plenty(ids):
    sketch = CountMinSketch(decay=1.0)
    sketch.add(hashes(ids))
    distinct = sorted(set(ids))
    truth = np.array([ids.count(i) for i in distinct]) / len(ids)
    found = sketch.frequency(hashes(distinct))
    assert (found >= truth - 1e-12).all()
    np.testing.assert_allclose(found, truth, atol=1e-9)


def test_crowded_cells_overestimate_only():
    sketch = CountMinSketch(depth=2, bits=4, decay=1.0)
    sketch.add(hashes(range(200)))
    found = sketch.frequency(hashes(range(200)))
    assert (found >= 1 / 200).all()
    assert found.max() > 2 / 200


def test_what_is_no_longer_seen_is_forgotten():
    sketch = CountMinSketch(decay=0.5)
    assert sketch.frequency(hashes("a")).tolist() == [0.0]
    sketch.add(hashes("aaaa"))
    for _ in range(10):
        sketch.add(hashes("bbbb"))
    a, b = sketch.frequency(hashes("ab"))
    assert a < 0.001
    assert b > 0.999
