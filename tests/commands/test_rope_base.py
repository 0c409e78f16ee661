"""The bases that LongRecipe printed, from its contexts."""

import pytest

from phd.commands.cli import main


@pytest.mark.parametrize(
    ("base", "trained", "target", "printed"),
    [
        (500_000, 8192, 81920, "48.88"),  # Llama-3-8B to 80K
        (500_000, 8192, 131072, "131.46"),  # to 128K
        (1_000_000, 32768, 131072, "13.54"),  # Qwen2-7B to 128K
    ],
)
def test_published_bases(base, trained, target, printed, capsys):
    assert main(["rope-base", "--base", str(base), "--from", str(trained), "--to", str(target)]) == 0
    assert f"{int(capsys.readouterr().out) / 1e6:.2f}" == printed


def test_whole_numbers_and_the_same_context(capsys):
    main(["rope-base", "--base", "500000", "--from", "8192", "--to", "131072"])
    main(["rope-base", "--base", "10000", "--from", "4096", "--to", "4096", "--head-dim", "64"])
    assert capsys.readouterr().out == "131460973\n10000\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--base 1 --from 8 --to 16", "--base must be a number above 1"),
        ("--base inf --from 8 --to 16", "--base must be a number above 1"),
        ("--base 1e4 --from 0 --to 16", "--from must be at least 1"),
        ("--base 1e4 --from 32 --to 16", "--to 16 is less than --from 32"),
        ("--base 1e4 --from 8 --to 16 --head-dim 3", "--head-dim must be even and at least 4"),
    ],
)
def test_refusals(flags, message, capsys):
    assert main(["rope-base", *flags.split()]) == 2
    assert message in capsys.readouterr().err
