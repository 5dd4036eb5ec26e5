"""Numbers as text: so many digits, never an exponent."""

from hypothesis import given
from hypothesis import strategies as st

from patchmerger.runs.text import significant


def test_numbers_of_all_sizes():
    numbers = (0.0, 0.0012345, 0.75164, 9.9996, 35.128, 3566.689)
    assert [significant(number) for number in numbers] == ["0.00", "0.00123", "0.752", "10.0", "35.1", "3,567"]
    assert [significant(number, 4) for number in (35.128, 1774.2)] == ["35.13", "1,774"]


@given(st.floats(1e-12, 1e12), st.integers(1, 6))
def test_a_number_is_near_what_is_written(number, digits):
    written = float(significant(number, digits).replace(",", ""))
    assert abs(written - number) <= 0.5 * 10.0 ** (1 - digits) * 1.01 * number
