"""The worth of a difference in parameters, against published numbers and by hand."""

import pytest

from phd.compare.logs import find_runs
from phd.compare.worth import PARSCALE, ScalingLaw, kv_cache_ratio
from tests.compare.conftest import PHD


def test_the_law_fits_what_parscale_prints_of_one_stream():
    """Losses on the Pile, of 0.54B to 4.35B parameters."""
    sizes = [535813376, 693753856, 1088376320, 1571472384, 2774773760, 4353203200]
    for size, loss in zip(sizes, [2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451], strict=True):
        assert PARSCALE.floor + (PARSCALE.scale / size) ** PARSCALE.exponent == pytest.approx(loss, abs=0.012)


def test_the_paper_s_gain_is_worth_a_fifth_more_parameters():
    assert PARSCALE.parameters_factor(-0.025, 1_200_000_000) == pytest.approx(1.2, abs=0.01)


def test_factor_is_the_law_turned_round():
    law = ScalingLaw(1.0, 1e6, 0.5, "")
    assert law.parameters_factor(0.0, 1000) == 1
    # (1e6 / N) ** 0.5 is 10 at N = 1e4, and 5 at four times as many parameters
    assert law.parameters_factor(-5.0, 10_000) == pytest.approx(4)
    assert law.parameters_factor(10.0, 10_000) == pytest.approx(1 / 4)
    assert law.parameters_factor(-10.0, 10_000) is None


def test_fit_asks_for_three_vanilla_sizes(make_run):
    def runs(*folders):
        return [run for folder in folders for run in find_runs(folder)]

    two = runs(make_run("a"), make_run("b", parameters=2000), make_run("c", parameters=2000))
    with pytest.raises(ValueError, match="--sizes has vanilla runs of 2 sizes"):
        ScalingLaw.fit(two)
    with pytest.raises(ValueError, match="p is no vanilla run with a validation"):
        ScalingLaw.fit(runs(make_run("p", **PHD)))
    with pytest.raises(ValueError, match="early is no vanilla run with a validation"):
        ScalingLaw.fit(runs(make_run("early", iterations=3)))


def test_bytes_of_the_cache(make_run):
    def ratio(name, **arguments):
        about = PHD | {"name": name, "seq_length": 64}
        (run,) = find_runs(make_run(name, arguments=arguments, **about))
        return kv_cache_ratio(run)

    assert ratio("PHD-CSWA-2-16-32", num_layers=3) == 1  # at a chunk's end no hidden copy is kept
    assert ratio("PHD-SWA-2-16-inf", num_layers=3) == (64 + 15) / 64
    assert ratio("naive-3", num_layers=3) == 3
    assert (sparse := ratio("sink.8.1.2", num_layers=2)) < 1
    by_head = ratio("heads.1full.3sink.8.1.2", num_layers=2, num_attention_heads=4)
    assert by_head == (1 + 3 * sparse) / 4
    assert ratio("PHD-2") is None and ratio("our-own", num_layers=2) is None
