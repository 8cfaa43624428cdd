"""The folder of the page: whole or not there, made of what the hash stands for, nobody else's."""

import base64
import hashlib
import io
import json
import tarfile

import pytest

from rwm_fast.app import browser
from rwm_fast.errors import UserError


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that gives a small package, and its folder; the hash is that of the package."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in browser.RUNTIME:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    place = tmp_path / "bin"
    place.mkdir()
    (place / "package").write_bytes(stream.getvalue())
    digest = hashlib.sha512(stream.getvalue()).digest()
    monkeypatch.setattr(browser, "SHA512", base64.b64encode(digest).decode())
    monkeypatch.setenv("PATH", str(place))
    says(place, f"/bin/cat '{place / 'package'}' > \"$last/some.tgz\"")
    return place


def says(place, command):
    """Another npm: `command`, with the folder that it shall pack into as $last."""
    program = place / "npm"
    program.write_text(f"#!/bin/sh\nfor last; do :; done\n{command}\n")
    program.chmod(0o755)


def networks(folder):
    for name in ("encoder.onnx", "generator.onnx"):
        (folder / name).write_bytes(b"network")


def build(out, networks=networks):
    return browser.build(out, networks, 8, 3, 64)


def test_what_is_in_it(npm, tmp_path):
    size = build(tmp_path / "new" / "page")
    page = tmp_path / "new" / "page"
    about = json.loads((page / "about.json").read_text())
    there = {p.relative_to(page).as_posix(): p.stat().st_size for p in page.rglob("*.*")}
    assert about["files"] == sorted(there) and sum(there.values()) == size
    assert about["work_sizes"] == [64, 128, 256, 512] and about["work_size"] == 128
    assert {f"examples/{name}" for name in about["examples"]} <= set(there)
    assert (page / "ort.js").read_text() == "package/dist/ort.wasm.min.mjs"
    assert {"index.html", "examples/README.md", "ort-LICENSE.txt", "encoder.onnx"} <= set(there)
    assert [p.name for p in page.parent.iterdir()] == ["page"]
    (page / "index.html").write_text("old")
    build(page)  # its own is replaced
    assert (page / "index.html").read_text() != "old"
    assert [p.name for p in page.parent.iterdir()] == ["page"]


def test_a_folder_with_anything_else_is_left_alone(npm, tmp_path):
    out = tmp_path / "page"
    build(out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new folder, .* with mine.txt in it"):
        build(out)
    assert (out / "mine.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    build(other)  # empty
    for name, content in (("about.json", "[]"), ("photo.jpg", "")):
        place = tmp_path / name / "folder"
        place.mkdir(parents=True)
        (place / name).write_text(content)
        with pytest.raises(UserError, match=f"with {name} in it"):
            build(place)
    with pytest.raises(UserError, match="got the file"):
        build(place / name)


def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(npm, tmp_path, monkeypatch):
    out = tmp_path / "page"

    def complaint():
        with pytest.raises(UserError) as error:
            build(out)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bin"]
        return str(error.value)

    says(npm, "echo 'npm error no such package' >&2; exit 1")
    assert complaint() == "npm could not fetch onnxruntime-web 1.22.0: npm error no such package"
    says(npm, "exit 0")
    assert complaint() == "npm could not fetch onnxruntime-web 1.22.0: exit status 0"
    says(npm, 'echo other > "$last/some.tgz"')
    assert ": expected a package of hash sha512-" in complaint()
    (npm / "npm").unlink()
    assert complaint().startswith("--format browser needs npm, which comes with Node.js")


def test_networks_that_fail_leave_what_was_there(npm, tmp_path):
    out = tmp_path / "page"
    build(out)
    (out / "index.html").write_text("the first")

    def failing(folder):
        raise UserError("it is not kept")

    with pytest.raises(UserError, match="it is not kept"):
        build(out, failing)
    assert (out / "index.html").read_text() == "the first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "page"]
