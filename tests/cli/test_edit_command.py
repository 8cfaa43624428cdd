"""`edit` as people type it: what it writes."""

import hashlib
import json

import numpy as np
import pytest
from commands import run
from PIL import Image, ImageCms

import rwm_fast
from rwm_fast.data.decode import load_image, load_picture
from rwm_fast.data.deep import write_png


def edit(model, *arguments):
    return "--checkpoint", model, *arguments


def test_edits_keep_the_size_of_the_picture(model, picture, tmp_path):
    content, style = picture("a b.jpg", (37, 21)), picture("b.png", (90, 64), color=(200, 10, 9))
    mask = picture("m.png", (37, 21), "L", 255)
    out = tmp_path / "out.png"
    for extra in (
        (),
        ("--mask", mask),
        ("--mask", mask, "--keep-detail"),
        ("--mask", mask, "--feather", "4"),
        ("--work-size", "16", "--keep-detail"),
    ):
        assert (
            run("edit", *edit(model, "--content", content, "--style", style, "--out", out, *extra))
            == 0
        )
        with Image.open(out) as edited:
            assert edited.size == (37, 21), extra
        out.unlink()


def test_feathering_leaves_the_outside_untouched(model, picture, tmp_path):
    content, style = picture("a.png", (64, 32)), picture("b.png", (32, 32), color=(250, 0, 0))
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 20, 32))
    mask.save(tmp_path / "m.png")
    out = tmp_path / "out.png"
    arguments = edit(
        model, "--content", content, "--style", style, "--mask", tmp_path / "m.png", "--out", out
    )
    assert run("edit", *arguments, "--feather", "6") == 0
    change = (load_image(out) - load_image(content)).abs()
    assert change[..., 26:].max() == 0 and change[..., :20].max() > 0
    assert run("edit", *arguments) == 0
    assert (load_image(out) - load_image(content)).abs()[..., 26:].max() > 0


def test_several_regions_with_several_styles(model, picture, tmp_path):
    content, out = picture("a.png", (32, 16)), tmp_path / "out.png"
    pairs = []
    for k, color in enumerate(((250, 0, 0), (0, 0, 250))):
        mask = Image.new("L", (32, 16), 0)
        mask.paste(255, (8 * k, 0, 8 * k + 10, 16))  # they overlap
        mask.save(tmp_path / f"m{k}.png")
        pairs += ["--style", picture(f"s{k}.png", color=color), "--mask", tmp_path / f"m{k}.png"]
    assert run("edit", *edit(model, "--content", content, *pairs, "--out", out)) == 0
    assert load_image(out).shape == (1, 3, 16, 32)


def test_edit_says_what_it_repaints_and_what_a_mask_does_not(model, picture, tmp_path, capsys):
    content, style, out = picture("a.png"), picture("b.png"), tmp_path / "o.png"
    mask = Image.new("L", (20, 14))
    mask.paste(1, (0, 0, 10, 14))
    mask.save(tmp_path / "half.png")
    mask.point(lambda level: 255 * level).resize((40, 28), 0).save(tmp_path / "twice.png")
    picture("all.png", mode="L", color=255)
    base = edit(model, "--content", content, "--style", style, "--out", out)
    for extra, share, remark in (
        ((), "100.0%", ""),
        (("--mask", tmp_path / "half.png"), "50.0%", ""),
        (("--mask", tmp_path / "half.png", "--mask-label", "0"), "50.0%", ""),
        (("--mask", tmp_path / "all.png"), "100.0%", "all.png selects everything"),
        (("--mask", tmp_path / "twice.png"), "50.0%", "twice.png was resized from 40 x 28"),
    ):
        assert run("edit", *base, *extra) == 0
        said = capsys.readouterr()
        assert said.out == f"{out}: 20 x 14, repaints {share}\n" and remark in said.err
    assert run("edit", *edit(model, "--content", content, "--style", style, "--out", content)) == 0
    assert "in place of the picture that was edited" in capsys.readouterr().out


def test_an_edited_photo_keeps_what_its_file_says(model, picture, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    photo = Image.new("RGB", (40, 24), (90, 120, 60))
    photo.save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), quality=95, subsampling=0)
    mask = Image.new("L", (24, 40))
    mask.paste(255, (0, 0, 24, 8))
    mask.save(tmp_path / "m.png")
    arguments = ("--content", tmp_path / "a.jpg", "--style", picture("b.png"), "--feather", 2)
    out = tmp_path / "o.jpg"
    assert run("edit", *edit(model, *arguments, "--mask", tmp_path / "m.png", "--out", out)) == 0
    with Image.open(out) as edited:
        assert edited.size == (24, 40) and edited.info["dpi"] == (300, 300)
        assert edited.getexif()[0x010F] == "Maker" and 0x0112 not in edited.getexif()
    before, after = load_image(tmp_path / "a.jpg"), load_image(out)
    assert (before - after)[..., 16:, :].abs().max() < 0.03  # quality 95 without subsampling
    assert (before - after)[..., :6, :].abs().max() > 0.03


def test_sixteen_bits_are_kept(model, picture, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (24, 40, 3), np.uint16)
    write_png(deep, tmp_path / "a.png", {"compress_level": 1})
    mask = Image.new("L", (40, 24))
    mask.paste(255, (0, 0, 10, 24))
    mask.save(tmp_path / "m.png")
    arguments = ("--content", tmp_path / "a.png", "--style", picture("b.png"), "--composite")
    arguments = edit(model, *arguments, "--mask", tmp_path / "m.png", "--out")
    for name in ("alone/o.png", "many/a--b.png"):
        out = tmp_path / name
        if out.parent.name == "many":
            (tmp_path / "all").mkdir()
            (tmp_path / "a.png").rename(tmp_path / "all" / "a.png")
            given = [str(a).replace("a.png", "all") for a in arguments]
            assert run("edit", *given, out.parent) == 0
            out = next(out.parent.glob("*.png"))
        else:
            out.parent.mkdir()
            assert run("edit", *arguments, out) == 0
        after = load_picture(out).pixels.deep
        np.testing.assert_array_equal(after[:, 10:], deep[:, 10:])
        inside = after[:, :10]
        assert (inside != deep[:, :10]).mean() > 0.9
        assert len(np.unique(inside & 255)) > 200  # not 8 bits, scaled


# ---- what a file says


def test_a_png_says_what_was_done_and_no_path(model, picture, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.new("RGB", (24, 16), (90, 120, 60)).save(
        tmp_path / "a.png", exif=exif, icc_profile=profile
    )
    mask, out = picture("m.png", (24, 16), "L", 255), tmp_path / "o.png"
    arguments = ("--content", tmp_path / "a.png", "--style", picture("b c.png"), "--mask", mask)
    assert run("edit", *edit(model, *arguments, "--strength", 0.5, "--out", out)) == 0
    with Image.open(out) as edited:
        said = edited.text
        assert edited.getexif()[0x010F] == "Maker" and edited.info["icc_profile"] == profile
    assert said["Software"] == f"rwm_fast {rwm_fast.__version__}"
    account = json.loads(said["rwm_fast"])
    assert account["command"] == (
        f"python -m rwm_fast.edit --content a.png --style 'b c.png' --out o.png "
        f"--checkpoint {model.name} --mask m.png --strength 0.5"
    )
    weights = hashlib.blake2b((model / "weights.safetensors").read_bytes(), digest_size=16)
    assert account["weights"] == weights.hexdigest()
    assert account["version"] == rwm_fast.__version__
    assert str(tmp_path).encode() not in out.read_bytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_composite_keeps_the_outside_bit_for_bit(model, picture, tmp_path, name):
    """Of the decoded content picture, noise that no network could paint."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 20, 30))
    mask.paste(90, (18, 0, 20, 30))
    mask.save(tmp_path / "m.png")
    out = tmp_path / "o.png"
    arguments = ("--content", tmp_path / name, "--style", picture("b.png"), "--composite")
    arguments += ("--mask", tmp_path / "m.png", "--out", out)
    for extra in ((), ("--work-size", 16)):
        assert run("edit", *edit(model, *arguments, *extra)) == 0
        with Image.open(tmp_path / name) as before, Image.open(out) as after:
            same = np.asarray(before) == np.asarray(after)
        assert same[:, 20:].all() and not same[:, :18].all()


# ---- strength, parts of styles, clicks


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_strength_goes_from_the_own_style_to_the_other_and_beyond(model, scene, tmp_path):
    base = ("--content", scene("a.png", 1), "--out", tmp_path / "o.png")

    def made(*extra):
        assert run("edit", *edit(model, *base, *extra)) == 0
        return pixels_of(tmp_path / "o.png")

    own = made("--style", tmp_path / "a.png")
    steps = [made("--style", scene("b.png", 2), "--strength", s) for s in (0, 0.5, 1, 1.5)]
    away = [np.abs(step - own).mean() for step in steps]
    assert away[0] == 0 and away[0] < away[1] < away[2] < away[3]
    assert np.array_equal(steps[2], made("--style", tmp_path / "b.png"))


def test_the_style_of_a_part_is_not_that_of_the_whole(model, scene, picture, tmp_path):
    part = Image.new("L", (64, 64))
    part.paste(255, (0, 0, 64, 20))
    part.save(tmp_path / "part.png")
    base = ("--content", scene("a.png", 1), "--style", scene("b.png", 2), "--out")
    results = []
    for extra in (
        (),
        ("--style-mask", picture("all.png", (32, 32), "L", 255)),
        ("--style-mask", tmp_path / "part.png"),
    ):
        assert run("edit", *edit(model, *base, tmp_path / "o.png", *extra)) == 0
        results.append(pixels_of(tmp_path / "o.png"))
    assert np.abs(results[0] - results[1]).max() <= 1  # the whole picture, added up otherwise
    assert np.abs(results[0] - results[2]).max() > 1


def test_clicks_select_what_they_are_on(model, tmp_path, picture, capsys):
    image = Image.new("RGB", (60, 40), (30, 80, 200))
    image.paste((40, 120, 40), (0, 20, 60, 40))
    image.paste((220, 30, 30), (40, 26, 52, 36))
    image.save(tmp_path / "a.png")
    base = (
        "--content",
        tmp_path / "a.png",
        "--style",
        picture("b.png"),
        "--out",
        tmp_path / "o.png",
    )
    for clicks, share in (
        (("--click", "5,5"), 50.0),
        (("--click", "46,30"), 5.0),
        (("--click", "5,5", "--click", "46,30"), 55.0),
        (("--click", "3,3", "--tolerance", 1), 100.0),
    ):
        assert run("edit", *edit(model, *base, *clicks, "--composite")) == 0
        assert float(capsys.readouterr().out.split()[-1].rstrip("%")) == pytest.approx(share, abs=1)
    both = ("--style", picture("c.png"), "--click", "5,5", "--click", "5,35")
    assert run("edit", *edit(model, *base, *both)) == 0
