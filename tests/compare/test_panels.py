from phd.compare.logs import find_runs
from phd.compare.panels import AXES, PANELS, SET, expand


def test_every_panel_is_well_formed():
    titles = [panel.title for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel.y and panel.x in AXES
        assert 0 <= panel.smoothing < 1
        assert not (panel.log and panel.zero)
        assert (SET in panel.title) == any(SET in name for name in panel.y)


def test_sections_are_not_torn():
    """groupby() makes a section of each stretch of panels that name it."""
    sections = [panel.section for panel in PANELS]
    assert sections == sorted(sections, key=sections.index)


def test_named_sets_have_a_panel_each(make_run, make_full_run):
    plain = [panel.title for panel in expand(find_runs(make_run("v")))]
    assert not any("{" in title for title in plain)
    full = expand(find_runs(make_full_run("w")))
    new = [panel for panel in full if panel.title not in plain]
    assert [panel.title for panel in new] == ["Validation loss: code", "Validation loss: wiki"]
    assert new[0].y == ("lm loss validation-code",)
