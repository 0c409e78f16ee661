import pytest

from phd.run.files import read_json, sha256, write_bytes, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_bytes(path, b"\xff\n")
    assert path.read_bytes() == b"\xff\n"
    write_text(path, "\u00e9\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_json_is_read_back(tmp_path):
    assert read_json(tmp_path / "file") == {}
    write_json(tmp_path / "file", {"a": [1, None]})
    assert read_json(tmp_path / "file") == {"a": [1, None]}


@pytest.mark.parametrize(("text", "problem"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_what_is_no_json_object_is_named(tmp_path, text, problem):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=f"file is {problem}.*: remove it"):
        read_json(tmp_path / "file")


def test_a_digest_is_of_the_contents_one_after_another(tmp_path):
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    # FIPS 180-2, appendix B.1: the digest of "abc"
    assert sha256(tmp_path / "a", tmp_path / "b") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
