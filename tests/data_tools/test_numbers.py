"""What is no number, or none that makes sense, is refused by the flag's name."""

import pytest
from megatron.core.datasets.blended_megatron_dataset_config import parse_and_normalize_split

from data_tools.numbers import check_above, check_at_least, train_share

NO_NUMBERS = [float("nan"), 0.0, -1.0, float("-inf")]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_above(value):
    with pytest.raises(ValueError, match="--flag must be a number above 0, got"):
        check_above("--flag", value, may_be_infinite=True)
    check_above("--flag", 1e-300)
    check_above("--flag", float("inf"), may_be_infinite=True)
    with pytest.raises(ValueError, match="got inf"):
        check_above("--flag", float("inf"))


def test_at_least():
    check_at_least("--flag", 1, most=1)
    for value in (0, -(10**30), 2):
        with pytest.raises(ValueError, match=f"--flag must be .* got {value:,}|got {value}"):
            check_at_least("--flag", value, most=1)


@pytest.mark.parametrize("split", ["95,5,0", "969,30,1", "1", "0.5,0.5", " 9 , 1 ,0", "100,0,0"])
def test_a_split_is_read_as_megatron_reads_it(split):
    assert train_share(split) == pytest.approx(parse_and_normalize_split(split)[0])


@pytest.mark.parametrize(
    "split",
    ["nan,1,0", "inf,1,0", "1,nan", "-1,2,0", "2,-1,0", "1e2,1,0", "0,1,0", "0,0,0", "", "a,b", "1,1,1,1",
     "95,5,", "95;5;0", "9" * 400],
)  # fmt: skip
def test_a_split_that_is_none(split):
    with pytest.raises(ValueError, match=f"--split {split[:20]}"):
        train_share(split)
