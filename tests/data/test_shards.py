"""Tar shards: written by prepare, by the webdataset library and by tar; read as a folder is."""

import gc
import io
import json
import os
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from rwm_fast.config import DataConfig
from rwm_fast.data import packing, shards
from rwm_fast.data.files import find_pictures
from rwm_fast.data.loader import make_loader
from rwm_fast.data.order import group_at
from rwm_fast.data.packing import Packing, pack
from rwm_fast.data.photos import PhotoSet
from rwm_fast.data.shards import INDEX, expand
from rwm_fast.errors import UserError
from rwm_fast.prepare import main
from rwm_fast.training.identity import identity
from rwm_fast.training.share import Share


def prepare(folder, out, *more: str):
    """Shards of at most seven pictures."""
    size = ["--smallest", "1", "--size", "0"]
    arguments = [str(folder), "--out", str(out), *size, "--shards", "--shard-pictures", "7", *more]
    assert main(arguments) == 0
    return out


@pytest.fixture
def shard_set(good_folder, tmp_path):
    return prepare(good_folder, tmp_path / "set")


def photo_set(*sources, batch=0, **options) -> PhotoSet:
    config = DataConfig(sources=tuple(map(str, sources)), resize=16, workers=0, **options)
    return PhotoSet(config, 16, seed=5, batch=batch)


def stream(pictures: PhotoSet, count: int = 8) -> torch.Tensor:
    loader = make_loader(pictures, 6)
    images = torch.cat([next(loader)["image"] for _ in range(count)])
    loader.close()
    return images


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tar_of(path, members: dict[str, bytes], **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# ---- written


def test_a_set_has_shards_an_index_and_the_report(shard_set, capsys):
    files = sorted(path.name for path in shard_set.iterdir())
    tars = [f"pictures-{k:06}.tar" for k in range(6)]
    assert files == ["SHA256SUMS", *tars, "report.json", INDEX]
    first, *lines = map(json.loads, (shard_set / INDEX).read_text().splitlines())
    assert first == shards.KIND
    assert [line["pictures"] for line in lines] == [7, 7, 7, 7, 7, 5]
    assert json.loads((shard_set / "report.json").read_text())["packed"] == {"photos": 40}
    for name, line in zip(tars, lines, strict=True):
        with tarfile.open(shard_set / name) as archive:
            members = archive.getmembers()
        assert [m.name for m in members] == line["names"]
        assert [m.offset_data for m in members] == line["offsets"]
        assert [m.size for m in members] == line["lengths"]
        assert line["bytes"] == (shard_set / name).stat().st_size
    assert all(m.count(".") == 1 for line in lines for m in line["names"])


def test_a_shard_ends_at_its_megabytes_and_holds_one_picture_at_least(good_folder, tmp_path):
    for most, name in (("0.01", "some"), ("0.00001", "one")):
        prepare(good_folder, tmp_path / name, "--shard-mb", most)
    sizes = [path.stat().st_size for path in (tmp_path / "some").glob("*.tar")]
    assert set(sizes) == {tarfile.RECORDSIZE} and 6 < len(sizes) < 40  # tar rounds up to it
    assert len(list((tmp_path / "one").glob("*.tar"))) == 40


class Stop(BaseException):
    """In the place of a kill."""


@pytest.mark.parametrize("torn", ["", "journal", "shard", "full shard", "lost", "behind", "other"])
def test_an_interrupted_command_goes_on_to_the_same_shards(
    good_folder, shard_set, tmp_path, monkeypatch, torn
):
    out, real, calls = tmp_path / "again", packing.UnfinishedShards.add, []

    def add(self, *rest):
        if len(calls) == 20:
            raise Stop
        calls.append(rest)
        real(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(packing.UnfinishedShards, "add", add)
        prepare(good_folder, out)
    journal, unfinished = (tmp_path / f"again.unfinished{end}" for end in (".jsonl", ""))
    assert not out.exists() and len(journal.read_text().splitlines()) == 21
    if torn == "journal":
        journal.write_text(journal.read_text()[:-30])
    elif torn in ("shard", "full shard"):
        path = unfinished / f"pictures-00000{2 if torn == 'shard' else 1}.tar"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif torn == "lost":
        (unfinished / "pictures-000001.tar").unlink()
    elif torn == "behind":
        with open(unfinished / "pictures-000002.tar", "ab") as file:
            file.write(b"half a member")
    elif torn == "other":
        journal.write_text('{"key": "of other files"}\n' + journal.read_text())
    decoded = []
    with monkeypatch.context() as patch:
        one = packing._prepare
        patch.setattr(packing, "_prepare", lambda *a: decoded.append(a) or one(*a))
        prepare(good_folder, out)
    assert sorted(tmp_path.glob("again*")) == [out]
    names = [path.name for path in sorted(shard_set.iterdir())]
    assert names == [path.name for path in sorted(out.iterdir())]
    assert all((shard_set / name).read_bytes() == (out / name).read_bytes() for name in names)
    left = {"": 20, "journal": 21, "lost": 33, "behind": 20, "other": 40}
    assert len(decoded) == left.get(torn, len(decoded)) and 20 <= len(decoded) <= 40


@pytest.mark.parametrize(
    "out, sentence",
    [
        ("photos", "expected a path where nothing is"),
        ("set.zip", "expected the name of a folder"),
        ("no/set", "in a folder that exists"),
    ],
)
def test_a_place_that_is_no_free_folder_is_refused(good_folder, tmp_path, capsys, out, sentence):
    with pytest.raises(SystemExit):
        prepare(good_folder, tmp_path / out)
    assert sentence in capsys.readouterr().err


# ---- read


def test_the_stream_is_that_of_the_folder_to_the_bit(good_folder, shard_set, monkeypatch):
    folder, tars = photo_set(good_folder), photo_set(shard_set / "photos")
    assert [p.name for p in folder.held_out] == [p.name for p in tars.held_out] != []
    for options in ({}, {"cache_mb": 0.0}):
        expected = stream(photo_set(good_folder, **options))
        assert torch.equal(expected, stream(photo_set(shard_set / "photos", **options)))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    by_processes = photo_set(shard_set / "photos", cache_mb=0.0)
    object.__setattr__(by_processes.config, "workers", 2)
    assert torch.equal(expected, stream(by_processes))
    lengths = {p.name: p.place.length(p.name) for p in tars.photos}
    pattern = photo_set(shard_set / "pictures-{000000..000005}.tar/photos")  # without the index
    assert {p.name: p.place.length(p.name) for p in pattern.photos} == lengths
    assert identity(pattern) == identity(tars) and torch.equal(expected, stream(pattern))
    assert np.array_equal(pattern.centre(pattern.photos[3]), tars.centre(tars.photos[3]))


def test_the_index_saves_opening_pictures_and_a_process_reads_only_its_own(shard_set, monkeypatch):
    opened = []
    real = shards.open_file

    def counting(path):
        opened.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(shards, "open_file", counting)
    pictures = photo_set(shard_set, cache_mb=0.0, held_out=0.0)
    assert opened == [INDEX] and len(pictures) == 40
    opened.clear()
    for position in range(10):
        pictures.sample(position)
    assert len(opened) == 10


def test_groups_of_shards_serve_their_part_of_every_batch(shard_set):
    whole = photo_set(shard_set, batch=8, shard_groups=2)
    shard_of = lambda name: whole.photos[0].place.shard_of(name)
    assert {shard_of(p.name) % 2 for p in whole.held_out} == {0} and not whole.in_memory
    assert [group_at(p, 2) for p in range(10)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3), (0, 4), (0, 5)
    ]  # fmt: skip
    rank = Share(0, 4).rows(8)  # of four processes the first and the third have the first group
    assert {group_at(8 + row, 2)[0] for row in (*rank, *Share(2, 4).rows(8))} == {0}
    samples = [whole.sample(position) for position in range(160)]
    for k in range(1, 6, 2):
        (shard_set / f"pictures-00000{k}.tar").unlink()
    own = photo_set(shard_set, batch=8, shard_groups=2)  # where only the first group's shards are
    first = [p for p in range(160) if p % 4 < 2]
    assert all(np.array_equal(own.sample(p)[0], samples[p][0]) for p in first)
    assert not any(own.sample(p)[2] for p in first)
    with pytest.raises(UserError, match="none of the pictures can be read any more"):
        own.sample(2)
    crops = {own.sample(p)[0].tobytes() for p in first[:21]}  # an epoch of the largest group
    assert len(crops) > 15
    with pytest.raises(UserError, match=r"3 of its 6 shards are missing, .* pictures-000001.tar"):
        photo_set(shard_set)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"batch": 6, "shard_groups": 2}, "--batch to be a multiple of 4, got 6"),
        ({"batch": 14, "shard_groups": 7}, "at least as many tar shards"),
    ],
)
def test_groups_that_cannot_be_are_refused(shard_set, options, sentence):
    with pytest.raises(UserError, match=sentence):
        photo_set(shard_set, **options)


def test_shards_are_sources_of_prepare(shard_set, tmp_path):
    out = tmp_path / "set.zip"
    assert main([str(shard_set / "photos"), "--smallest", "1", "--out", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        assert len(archive.namelist()) == 41


# ---- of others


def test_shards_of_others(make_photo, tmp_path):
    """As webdataset writes them: every sample some files, the same names in every shard."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for k in range(2):
        tar_of(
            folder / f"train-{k}.tar",
            {
                "000.png": png(make_photo(10 * k)),
                "000.json": b"{}",
                "001.png": png(make_photo(10 * k + 1)),
                ".hidden.png": b"",
                "sub/without": png(make_photo(10 * k + 2)),
            },
        )
    place, listing = find_pictures(folder)
    files = ("000.png", "001.png", "sub/without")
    assert listing.pictures == [f"train-{k}.tar/{name}" for k in (0, 1) for name in files]
    assert listing.passed_over["train-0.tar/000.json"] == "not a picture"
    assert listing.passed_over["train-1.tar/.hidden.png"] == "hidden"
    with place.open("train-1.tar/001.png") as file:
        assert file.read() == png(make_photo(11))
    _, listing = find_pictures(folder / "train-0.tar")
    assert listing.pictures == [*files]
    _, listing = find_pictures(folder / "train-{0,1}.tar" / "sub")
    assert listing.pictures == ["train-0.tar/without", "train-1.tar/without"]


def test_the_webdataset_library_reads_and_writes_the_same(shard_set, make_photo, tmp_path):
    wds = pytest.importorskip("webdataset", reason="the extra shards is not installed")
    urls = sorted(map(str, shard_set.glob("*.tar")))
    with warnings.catch_warnings():  # it leaves the closing of its files to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        read = {s["__key__"]: s["png"] for s in wds.WebDataset(urls, shardshuffle=False)}
        gc.collect()
    place, listing = find_pictures(shard_set)
    assert [f"{key}.png" for key in sorted(read)] == sorted(listing.pictures)
    for name in listing.pictures:
        with place.open(name) as file:
            assert file.read() == read[name.removesuffix(".png")]
    with wds.ShardWriter(f"{tmp_path}/own-%03d.tar", maxcount=3, verbose=0) as writer:
        for k in range(5):
            writer.write({"__key__": f"{k:03}", "png": make_photo(k), "json": {"k": k}})
    place, listing = find_pictures(tmp_path / "own-{000..001}.tar")
    assert listing.pictures == [f"{k:03}.png" for k in range(5)]
    assert len(listing.passed_over) == 5
    assert len(photo_set(tmp_path / "own-{000..001}.tar")) == 5


def test_odd_members_and_damage_are_told(make_photo, tmp_path):
    data = png(make_photo(1))
    long = "long/" * 60 + "é.png"
    odd = tar_of(tmp_path / "odd.tar", {"./a.png": data, long: data, "a.png": b""})
    with tarfile.open(odd, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    _, listing = find_pictures(odd)
    assert listing.pictures == ["a.png", long]
    assert listing.passed_over == {
        "a.png (1)": "a later member of the tar has the same name",
        "link.png": "a link",
    }
    whole = tar_of(tmp_path / "b.tar", {f"{k}.png": data for k in range(4)}).read_bytes()
    block = 512 + -(-len(data) // 512) * 512
    (tmp_path / "b.tar").write_bytes(whole[: 2 * block + 600])
    place, listing = find_pictures(tmp_path / "b.tar")
    assert listing.pictures == ["0.png", "1.png"]
    assert listing.passed_over["2.png"] == "the shard ends before it does"
    (tmp_path / "b.tar").write_bytes(whole[: 2 * block] + b"x" * 512 + whole[2 * block + 512 :])
    _, listing = find_pictures(tmp_path / "b.tar")
    assert listing.pictures == ["0.png", "1.png"]
    assert listing.passed_over["b.tar"] == f"damaged: no header of a member at byte {2 * block}"
    tar_of(tmp_path / "c.tar", {"a.png": data}).replace(tmp_path / "d.tar")
    with tarfile.open(tmp_path / "c.tar", "w:gz"):
        pass
    _, listing = find_pictures(tmp_path / "{c,d}.tar")
    assert listing.passed_over["c.tar"].startswith("compressed with gzip")


def test_a_folder_of_photos_stays_one_beside_a_tar(good_folder):
    tar_of(good_folder / "backup.tar", {"a.png": b""})
    place, listing = find_pictures(good_folder)
    assert len(listing.pictures) == 40 and "backup.tar" in listing.passed_over


INDICES = [
    ("{}", "line 1"),
    ("[]" * 2, "line 1"),
    ("\xff", "line 1"),
    (json.dumps(shards.KIND) + "\nnull\n", "line 2"),
]


@pytest.mark.parametrize("text, where", INDICES)
def test_an_index_that_is_none_is_refused(shard_set, text, where):
    (shard_set / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"{where}: expected what prepare --shards writes"):
        find_pictures(shard_set)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../x.tar"},
        {"offsets": [0]},
        {"names": None},
        {"lengths": [2**62] * 7},
        {"offsets": [2**70] * 7},
        {"widths": ["3"] * 7},
        {"heights": [-1] * 7},
        {"bytes": None},
    ],
)
def test_an_index_with_what_cannot_be_is_refused(shard_set, change):
    first, second, *rest = (shard_set / INDEX).read_text().splitlines()
    lines = [first, json.dumps(json.loads(second) | change), *rest]
    (shard_set / INDEX).write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 2: expected what prepare --shards writes"):
        find_pictures(shard_set)


def test_a_shard_of_another_length_is_refused(shard_set):
    path = shard_set / "pictures-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"000002.tar: expected \d+ bytes as shards.jsonl says"):
        find_pictures(shard_set)


def test_patterns():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{b,a}-{1..0}.tar") == ["b-1.tar", "b-0.tar", "a-1.tar", "a-0.tar"]
    assert expand("a{}.tar") == ["a{}.tar"]
    with pytest.raises(UserError, match="more than 1000000 shards"):
        expand("{0..999999}{0..999999}.tar")


def test_an_absent_shard_of_a_pattern_is_refused(shard_set):
    with pytest.raises(UserError, match="pictures-000006.tar does not exist"):
        find_pictures(shard_set / "pictures-{000000..000006}.tar")


@pytest.mark.parametrize("name", ["", ".", "./", "./."])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_without_a_name_is_passed_over(tmp_path, kind, name):
    picture, path = png(Image.new("RGB", (20, 20))), tmp_path / f"a.{kind}"
    if kind == "tar":
        tar_of(path, {name: picture, "b.png": picture})
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), picture)
            archive.writestr("b.png", picture)
    report = pack([str(path)], tmp_path / "out.zip", Packing(smallest=1, size=16))
    assert report.packed == {"a": 1} and not report.copies and not report.unreadable
    nameless = [why for why in report.passed_over.values() if why == "it has no name"]
    assert len(nameless) == (not name.endswith("/") or kind == "tar")
