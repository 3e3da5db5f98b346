"""The image's entry point."""

import sys

import pytest

from container.__main__ import main


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m"])
    (tmp_path / "serve").write_text("import sys\nprint('serving', __name__, *sys.argv[1:])\nraise SystemExit(7)\n")
    return tmp_path


def test_a_known_word_becomes_its_launcher(root, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--now"], root)
    assert ended.value.code == 7
    assert capsys.readouterr().out == "serving __main__ --now\n"
    assert sys.argv[0] == str(root / "serve")


@pytest.mark.parametrize("arguments", [["bogus"], [], ["../serve"], ["train"]], ids=["unknown", "none", "path", "not in this image"])
def test_any_other_word_is_refused_in_one_line(root, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments, root)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert repr(arguments[0] if arguments else "") in error
    assert "accepted are serve (" in error
