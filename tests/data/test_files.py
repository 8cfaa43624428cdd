"""Every file of a folder or a zip is packed, or counted with its reason; no file starts a program,
waits for ever or takes more memory than is admitted."""

import io
import os
import socket
import stat
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rwm_fast.data.decode import decode, load_image
from rwm_fast.data.files import find_pictures, kinds_of, printable
from rwm_fast.data.formats import FORMATS, BadImageError, Limits, check_png, opened, sniff
from rwm_fast.data.packing import Packing, pack
from rwm_fast.disk import write_whole
from rwm_fast.errors import UserError

SMALL = Packing(smallest=1)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- formats


def test_no_other_reader_is_asked_and_no_program_started(make_photo, tmp_path, monkeypatch):
    """An EPS file goes to Ghostscript, whatever it is called, if Pillow may choose."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder = tmp_path / "photos"
    folder.mkdir()
    make_photo(0).save(folder / "good.png")
    for kind in ("EPS", "PDF", "PCX", "SGI", "ICO", "DDS", "MSP", "XBM", "SPIDER", "ICNS"):
        mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
        image = make_photo(1).resize((64, 64)).convert("L" if mode != "RGB" else mode).convert(mode)
        (folder / f"{kind}.png").write_bytes(encoded(image, kind))
    report = pack([str(folder)], None, SMALL)
    assert report.packed == {"photos": 1} and len(report.unreadable) == 10
    assert set(report.unreadable.values()) == {"no image format is recognised"}
    with pytest.raises(UserError, match="no image format is recognised"):
        load_image(folder / "EPS.png")
    assert not (tmp_path / "called").exists()


def test_formats_are_told_by_content_and_not_by_name(make_photo, tmp_path):
    for kind in FORMATS:
        if kind in ("TGA", "AVIF"):  # no signature; not in every Pillow
            continue
        (tmp_path / f"{kind} without extension").write_bytes(encoded(make_photo(1), kind))
        (tmp_path / f"{kind}.gif").write_bytes(encoded(make_photo(1), kind))
    listing = find_pictures(tmp_path)[1]
    assert len(listing.pictures) == 16 and not listing.passed_over
    for name in listing.pictures:
        assert sniff((tmp_path / name).read_bytes()[:64]) in name
        assert load_image(tmp_path / name).shape == (1, 3, 48, 60)


PASSED_OVER = {  # name: (beginning, word of the reason)
    "a.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "b.heif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
    "c.jxl": (b"\xff\x0a\0\0", "JPEG XL"),
    "d.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "e.DNG": (b"II*\0\x08\0\0\0", "RAW"),
    "f.cr3": (b"\0\0\0\x18ftypcrx ", "RAW"),
    "g.psd": (b"8BPS\0\x01", "Photoshop"),
    "h.txt": (b"some words", "not a picture"),
    "without": (b"", "not a picture"),
    ".hidden.png": (b"", "hidden"),
    "__MACOSX/a.png": (b"", "macOS"),
    ".git/b.png": (b"", "hidden"),
    "i.zip": (b"PK\x03\x04", "not a picture"),
}


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_passed_over_is_counted_with_its_reason(packed, make_photo, tmp_path, monkeypatch):
    monkeypatch.setattr("rwm_fast.data.formats.readers", lambda: FORMATS)  # no optional ones
    files = {name: head + b"\0" * 80 for name, (head, _) in PASSED_OVER.items()}
    files |= {"photo.png": encoded(make_photo(1)), "really heic.jpg": files["a.HEIC"]}
    if packed:
        source = tmp_path / "a.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        source = tmp_path / "a"
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    report = pack([str(source)], None, SMALL)
    assert report.packed == {"a": 1}
    (reason,) = report.unreadable.values()
    assert "HEIC" in reason and "pip install pillow-heif" in reason
    reasons = {name[len(str(source)) + 1 :]: why for name, why in report.passed_over.items()}
    assert reasons.keys() == PASSED_OVER.keys()
    for name, (_, word) in PASSED_OVER.items():
        assert word in reasons[name], name
    assert f"{len(PASSED_OVER)} were passed over (" in "\n".join(report.lines())


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.arw").write_bytes(b"II*\0")
    with pytest.raises(
        UserError, match=r"no pictures; passed over 3 \.arw, for example 0.arw: a c"
    ):
        find_pictures(tmp_path)
    assert kinds_of(["a.HEIC", "b.heic", "c"]) == "2 .heic, 1 without extension"


def test_a_raw_file_by_another_name_is_not_taken_for_its_preview(make_photo):
    for tags in ({50706: b"\x01\x04\0\0"}, {254: 1}):
        file = io.BytesIO(encoded(make_photo(1), "TIFF", tiffinfo=tags))
        with pytest.raises(BadImageError, match="RAW"):
            decode(file)


def test_a_tiff_without_all_of_its_strips_is_damaged(make_photo):
    data = encoded(make_photo(1, 40, 30), "TIFF")
    tall = data.replace(struct.pack("<HHII", 257, 4, 1, 30), struct.pack("<HHII", 257, 4, 1, 3000))
    assert tall != data
    with pytest.raises(BadImageError, match="truncated: 1 of 100 strips are there"):
        decode(io.BytesIO(tall))


# ---- what is no file


def test_pipes_sockets_devices_and_dead_links_are_passed_over(make_photo, tmp_path):
    make_photo(1).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/zero")
    (tmp_path / "dead.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as endpoint:
        here = os.getcwd()
        os.chdir(tmp_path)  # addresses of sockets are short
        try:
            endpoint.bind("socket.jpg")
        finally:
            os.chdir(here)
        pictures, passed_over = find_pictures(tmp_path)[1]
    assert pictures == ["a.png"]
    assert passed_over == {
        "dead.jpg": "No such file or directory",
        "null.jpg": "a device, not a file",
        "pipe.jpg": "a pipe, not a file",
        "socket.jpg": "a socket, not a file",
    }
    for name in ("pipe.jpg", "null.jpg"):
        with pytest.raises(UserError, match="cannot be opened: it is a .*, not a file"):
            load_image(tmp_path / name)


def test_a_folder_that_cannot_be_opened_is_counted(make_photo, tmp_path, monkeypatch):
    make_photo(1).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    pictures, passed_over = find_pictures(tmp_path)[1]
    assert pictures == ["a.png"] and passed_over == {"closed/": "Permission denied"}
    with pytest.raises(UserError, match="holds no pictures; passed over 1 .*: Permission denied"):
        find_pictures(tmp_path / "closed")


@pytest.mark.parametrize("target", ["/dev/full", "/dev/null", "pipe", "folder", "link"])
def test_nothing_but_a_file_is_replaced(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("/dev/null", "link")
    before = os.stat(target)
    with pytest.raises(UserError, match="cannot be written: it is a (device|pipe|folder), not a"):
        write_whole(target, lambda path: path.write_text("x"))
    after = os.stat(target)
    assert (stat.S_IFMT(before.st_mode), before.st_ino) == (
        stat.S_IFMT(after.st_mode),
        after.st_ino,
    )
    assert sorted(os.listdir()) == ["folder", "link", "pipe"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("before")
    path.chmod(0o640)

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, fail)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.png"]
    (tmp_path / "link").symlink_to("a.png")
    write_whole(tmp_path / "link", lambda temporary: temporary.write_text("after"))
    assert (tmp_path / "link").is_symlink() and path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_named_whatever_the_writer_makes_of_it(make_photo, tmp_path):
    import resource

    def states(path):
        with open(path, "wb") as file:
            torch.save({"a": torch.ones(9999)}, file)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # in the place of a small disk
    try:
        for write in (states, lambda path: make_photo(1, 400, 300).save(path, "BMP")):
            with pytest.raises(OSError, match="File too large: .*a.file"):
                write_whole(tmp_path / "a.file", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(ValueError, match="of the writer"):
        write_whole(tmp_path / "b", lambda _: int("of the writer"))
    assert not os.listdir(tmp_path)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / ("n" * 200 + ".txt")

    def write(temporary):
        temporary.write_text("first")
        write_whole(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    write_whole(path, write)
    assert path.read_text() == "first" and os.listdir(tmp_path) == [path.name]


# ---- limits


def header_png(width: int, height: int) -> bytes:
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_sizes_are_refused_from_the_header_with_the_way_out(make_photo):
    for width, height in ((30_000, 30_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(BadImageError, match=r"megapixels, more than 250 \(--max-megapixels"):
            decode(io.BytesIO(header_png(width, height)))
    file = io.BytesIO(encoded(make_photo(1, 100, 50)))
    with pytest.raises(BadImageError, match="100 x 50 are 0 megapixels, more than 0.004"):
        decode(file, limits=Limits(max_megapixels=0.004))
    jpeg = bytearray(encoded(make_photo(1), "JPEG", progressive=True))
    place = jpeg.index(b"\xff\xc2") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 15_000, 15_000)
    with pytest.raises(BadImageError, match="truncated: .* bytes cannot hold 15000 x 15000"):
        decode(io.BytesIO(jpeg))


def test_pillows_own_limit_gives_way_and_comes_back(make_photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(make_photo(1))
    with opened(io.BytesIO(data)), opened(io.BytesIO(data)) as image:
        assert image.size == (60, 48)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_large_members_are_refused_before_they_are_read(make_photo, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(3_000_000))
        archive.writestr("good.png", encoded(make_photo(1)))
    report = pack([str(tmp_path / "a.zip")], None, SMALL, limits=Limits(max_member_mb=2))
    assert report.packed == {"a": 1}
    assert list(report.unreadable.values()) == [
        "3 MB when unpacked, more than 2 (--max-member-mb raises the limit)"
    ]
    with pytest.raises(ValueError, match="expected more than 0"):
        Limits(max_member_mb=0)


# ---- damage


def test_every_wrong_checksum_of_a_png_is_seen(make_photo):
    data = encoded(make_photo(1, 20, 16))
    check_png(io.BytesIO(data))
    for place in range(8, len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(BadImageError):
            check_png(io.BytesIO(broken))
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    pixels = bytearray(data[start + 4 : start + 4 + length])
    pixels[-1] ^= 1  # the Adler sum, under a CRC that is right
    crc = struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    broken = data[: start + 4] + pixels + crc + data[start + 8 + length :]
    with pytest.raises(BadImageError, match="incorrect data check"):
        check_png(io.BytesIO(broken))


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
def test_damaged_members_have_a_reason_whatever_is_raised(method, make_photo, tmp_path):
    """The member's data, its local header, its sizes, its method and its flags, one by one."""
    random = np.random.default_rng(method)
    good = encoded(make_photo(0))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.png", good)
        archive.writestr("b.bmp", encoded(make_photo(1), "BMP"))
        archive.writestr("c", encoded(make_photo(2), "BMP"))
    data = file.getvalue()
    central = data.index(b"PK\x01\x02", data.index(b"b.bmp") + 40)
    for attempt in range(60):
        broken = bytearray(data)
        spread = (len(good), len(data)) if attempt % 2 else (central, len(data) - 22)
        for place in random.integers(*spread, 3):
            broken[place] = random.integers(0, 256)
        (tmp_path / "z.zip").write_bytes(broken)
        try:
            report = pack([str(tmp_path / "z.zip")], None, SMALL)
        except UserError as error:
            assert str(error)
            continue
        files = len(report.unreadable) + len(report.passed_over) + len(report.copies)
        assert sum(report.packed.values()) + files + len(report.too_small) >= 1
        assert all([*report.unreadable.values(), *report.passed_over.values()])


def test_of_members_with_one_name_the_last_counts(make_photo, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning):
        for seed in range(3):
            archive.writestr("same.png", encoded(make_photo(seed)))
    place, listing = find_pictures(tmp_path / "a.zip")
    assert listing.pictures == ["same.png"]
    assert listing.passed_over == {
        "same.png (1)": "a later member of the zip has the same name",
        "same.png (2)": "a later member of the zip has the same name",
    }
    with place.open("same.png") as file:
        assert file.read() == encoded(make_photo(2))


def test_members_of_windows_and_links(make_photo, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("beach\\one.png", "beach\\deep\\two.png", "__MACOSX\\three.png"):
            info = zipfile.ZipInfo("x")
            info.filename = name  # the constructor would put other separators
            archive.writestr(info, encoded(make_photo(len(name))))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    listing = find_pictures(tmp_path / "a.zip")[1]
    assert listing.pictures == ["beach/deep/two.png", "beach/one.png"]
    assert listing.passed_over["link.png"] == "a link"
    place, inside = find_pictures(tmp_path / "a.zip" / "beach")
    assert inside.pictures == ["deep/two.png", "one.png"]
    with place.open("one.png") as file:
        assert decode(file).size == (60, 48)


# ---- names


NAMES = [
    b"\xe9t\xe9.png",  # Latin-1
    b"\x82\xa0.png",  # Shift-JIS
    "été.png".encode(),
    b"A.png",
    b"a.png",
    b"back\\..\\..\\slash.png",
    b"C:drive.png",
    b"con.png",
    b"question?.png",
    b"new\nline.png",
    b"dots. . .png",
    b"n" * 200 + b".png",
]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_names_of_every_sort_are_packed_under_names_that_any_system_can_unpack(
    make_photo, tmp_path
):
    folder = tmp_path / "p"
    folder.mkdir()
    for k, name in enumerate(NAMES):
        (folder / os.fsdecode(name)).write_bytes(encoded(make_photo(k)))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    code = "import sys; from rwm_fast.prepare import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "--out", str(tmp_path / "p.zip"), "--smallest=1"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"1 could not be read" in done.stdout and b"\\xff.png" in done.stdout
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        members = [name for name in archive.namelist() if name != "report.json"]
    assert len(members) == len(NAMES) == len({name.casefold() for name in members})
    for name in members:
        label, rest = name.split("/")
        assert label == "p" and not set(rest) & set('\\:?*<>|"\n') and len(rest.encode()) < 150
    assert {"p/%E9t%E9.png", "p/été.png", "p/_con.png", "p/dots.png"} <= set(members)


def test_names_are_shown_on_one_line_with_their_bytes():
    assert printable("a\nb\x1b[2Jc\u202ed\ud800e🌄") == "a\\nb\\x1b[2Jc\\u202ed\\ud800e🌄"
    assert printable(os.fsdecode(b"\xe9 \xc3\xa9")) == "\\xe9 é"
