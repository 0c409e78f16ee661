"""The picture in README."""

from tools.draw_copies import OUTPUT, picture


def test_the_file_is_what_the_script_draws():
    assert OUTPUT.read_text(encoding="utf-8") == picture()
