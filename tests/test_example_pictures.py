"""The free pictures: few, small, credited, and copied by their command."""

from PIL import Image

from rwm_fast import examples

PICTURES = sorted(file for file in examples.FOLDER.iterdir() if file.suffix == ".jpg")
MASKS = sorted(file for file in examples.FOLDER.iterdir() if file.suffix == ".png")


def test_they_are_few_and_small():
    assert 2 <= len(PICTURES) <= 4
    assert sum(file.stat().st_size for file in examples.FOLDER.iterdir()) <= 400_000


def test_each_is_credited():
    credits = (examples.FOLDER / "README.md").read_text(encoding="utf-8")
    for file in PICTURES:
        line = next(line for line in credits.splitlines() if f"({file.name})" in line)
        assert any(licence in line for licence in ("CC BY 4.0", "CC0", "public domain")), line


def test_masks_fit_their_pictures():
    assert MASKS
    for mask in MASKS:
        with (
            Image.open(mask) as m,
            Image.open(mask.with_name(mask.stem.split("-")[0] + ".jpg")) as p,
        ):
            assert m.size == p.size and m.mode in ("1", "L")


def test_the_command_copies_them_and_keeps_what_is_there(tmp_path, capsys):
    own = tmp_path / "out" / PICTURES[0].name
    own.parent.mkdir()
    own.write_text("mine")
    assert examples.main(["--out", str(own.parent)]) == 0
    assert {f.name for f in own.parent.iterdir()} == {f.name for f in examples.FOLDER.iterdir()}
    assert own.read_text() == "mine"
    assert str(own) in capsys.readouterr().out.splitlines()


def test_a_file_in_the_way_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    try:
        examples.main(["--out", str(tmp_path / "file")])
    except SystemExit as stop:
        assert stop.code == 2
    assert capsys.readouterr().err.startswith("error: --out: ")
