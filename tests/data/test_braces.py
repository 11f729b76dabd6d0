import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcgan_dist.data.braces import expand_braces
from dcgan_dist.errors import DataError

names = st.text("ab-0./", max_size=3)
numbers = st.tuples(st.integers(0, 20), st.integers(0, 12), st.integers(1, 3), st.integers(1, 3))
ranges = numbers.map(lambda of: f"{{{str(of[0]).zfill(of[2])}..{str(of[0] + of[1]).zfill(of[3])}}}")
lists = st.lists(names, min_size=2, max_size=3).map(lambda parts: f"{{{','.join(parts)}}}")


@given(st.lists(st.one_of(names, ranges, lists), max_size=4).map("".join))
def test_ranges_and_lists_stand_for_what_they_do_in_webdataset(pattern):
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


@given(st.text("a0{},.", max_size=9))
def test_what_webdataset_would_take_otherwise_is_refused(pattern):
    try:
        found = expand_braces(pattern)
    except DataError:
        return
    assert found == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["{a,{b,c}}", "x-{a,b{c,d}", "x}-{a,b}", "{0..4..2}", "{a..c}", "{3..1}", "{a}"])
def test_other_braces_are_refused(pattern):
    with pytest.raises(DataError, match=r"brace|no range"):
        expand_braces(pattern)
