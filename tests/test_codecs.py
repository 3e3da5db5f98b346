"""What is written reads back."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from container import decoding
from container.codecs import CSV, JSON, JSONLINES, NPY, NPZ, decode, encode
from tests.bodies import same

MANY = settings(max_examples=300, deadline=None)

finite = st.floats(allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats())
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip() and isinstance(number_or_text(s), str))


def number_or_text(cell: str) -> float | str:
    return decoding._value(cell, decoding._strict_number)


@MANY
@given(matrices)
def test_numbers_survive_csv_and_npy(array):
    for kind in (CSV, NPY, NPZ):
        assert same(decode(encode(array, kind), kind), array)


@MANY
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=finite))
def test_numbers_survive_json(array):
    assert same(decode(encode(array, JSON), JSON), array)
    assert same(decode(encode(array, JSONLINES), JSONLINES), array if array.ndim > 1 else array.reshape(-1, 1))


@MANY
@given(st.lists(st.lists(st.one_of(texts, finite), min_size=3, max_size=3), min_size=1, max_size=5))
@example([["a\rb", "b\r", '"']])
@example([["\u2028 ,", "\x1cy", " x "]])
def test_tables_survive_csv(rows):
    mixed = any(isinstance(cell, str) for row in rows for cell in row)
    assert same(decode(encode(rows, CSV), CSV), np.array(rows, dtype=object if mixed else float))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), finite, st.text(st.characters(exclude_categories=["Cs"]))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
)


@MANY
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, min_size=2, max_size=4))
def test_objects_survive_json(value):
    assert decode(encode(value, JSON), JSON) == value
