"""The page of `rwm_fast.export --format browser`, in a browser: its edits are the editor's."""

import base64
import http.server
import io
import shutil
import threading
from functools import partial

import numpy as np
import pytest
from chromium import visit
from PIL import Image

from rwm_fast import export
from rwm_fast.config import Config
from rwm_fast.models import save_weights
from tests.models.tiny_networks import DEMO

READY = "#edit:not([disabled])"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def address(chromium, exported, tmp_path_factory):
    """Where the page is served, made by the command as a user gives it; the networks are those
    that the export's own test has checked."""
    if shutil.which("npm") is None:
        pytest.skip("no npm (apt-get install npm)")
    editor, onnx = exported
    folder = tmp_path_factory.mktemp("browser")
    weights, out = folder / "weights.safetensors", folder / "page"
    save_weights(weights, editor.encoder, editor.generator, Config(model=DEMO))
    with pytest.MonkeyPatch.context() as patch:
        written = lambda _, to: [shutil.copy(file, to) for file in onnx.iterdir()]
        patch.setattr(export, "export", written)
        given = ["--format", "browser", "--checkpoint", str(weights), "--out", str(out)]
        assert export.main(given) == 0
    shutil.copytree(out, folder / "broken", ignore=shutil.ignore_patterns("encoder.onnx"))
    serve = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/page/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def opened(chromium, address):
    with visit(chromium, address) as seen:
        seen.page.set_default_timeout(120_000)
        seen.page.wait_for_selector(READY)
        yield seen


@pytest.fixture
def page(opened):
    """The page as it is at first. It asks for nothing elsewhere, and no script of it fails."""
    page = opened.page
    choose(page, "content", file_of(picture(900, 600, seed=2)))
    page.locator("#soft").set_checked(True)
    page.locator("label:has(#brush)").click()
    yield page
    assert opened.outside == [] and opened.errors == []


def picture(width, height, seed):
    """Smooth colours under some noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    noise = draw.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def file_of(image, name="picture.png", **options):
    stream = io.BytesIO()
    image.save(stream, name.rpartition(".")[2].replace("jpg", "jpeg"), **options)
    return {"name": name, "mimeType": "image/*", "buffer": stream.getvalue()}


def choose(page, role, file):
    page.set_input_files(f"#{role}-file", file)
    page.wait_for_selector(READY)


def paint(page, *points):
    """A stroke through points, in shares of the picture's width and height."""
    box = page.locator("#mask").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def region(page):
    """The levels of the painted mask [H, W]."""
    data = page.evaluate("document.getElementById('mask').toDataURL('image/png')")
    image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
    return np.asarray(image.convert("RGBA"))[..., 3]


def status(page):
    return page.locator("#status").inner_text()


def edited(page):
    """What Edit makes, as it is downloaded."""
    page.click("#edit")
    page.wait_for_selector(READY)
    assert status(page).startswith("Edited in "), status(page)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "edited.png"
    return np.asarray(Image.open(download.value.path()))


# The networks agree within 1e-4 of [−1, 1], 0.013 levels, and the arithmetic around them to float32
# rounding: a level differs by one where that crosses the middle between two.
@pytest.mark.parametrize(
    ("size", "strength", "detail"),
    [((150, 110), 1.0, False), ((150, 110), 0.5, True), ((311, 230), 1.25, True)],
    ids=["painted", "at-the-networks-size", "larger"],
)
def test_an_edit_is_the_editors(page, exported, size, strength, detail):
    content, style = picture(*size, seed=0), picture(130, 170, seed=1)
    choose(page, "content", file_of(content))
    choose(page, "style", file_of(style))
    page.locator("#brush-size").fill("30")
    paint(page, (0.2, 0.3), (0.6, 0.4), (0.7, 0.8))
    page.locator("#strength").fill(str(strength))
    page.locator("#keep-detail").set_checked(detail)
    result, inside = edited(page), region(page)
    assert 0.05 < (inside == 255).mean() < 0.6 and len(np.unique(inside)) > 20  # soft
    options = dict(strength=strength, keep_detail=detail, feather=0, work_size=128)
    wanted = exported[0].edit(content, style, Image.fromarray(inside), **options)
    wanted, own = np.asarray(wanted, np.int64), np.asarray(content, np.int64)
    result = result[..., :3].astype(np.int64)
    assert (result == own)[inside == 0].all()
    assert np.abs(result - own)[inside == 255].mean() > 5
    difference = np.abs(result - wanted)
    assert difference.max() <= 1 and difference.mean() < 0.001


def test_erase_clear_and_a_finger(page):
    page.locator("#soft").set_checked(False)
    page.locator("#brush-size").fill("10")
    line = (0.2, 0.5), (0.8, 0.5)
    paint(page, *line)
    assert set(np.unique(region(page)[300:310, 300:600])) == {255}
    page.locator("#brush-size").fill("20")
    page.locator("label:has(#erase)").click()
    paint(page, *line)
    assert not region(page).any()
    page.locator("label:has(#brush)").click()
    box = page.locator("#mask").bounding_box()
    finger = page.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0.3), ("touchMove", 0.5), ("touchEnd", None)):
        x, y = box["x"] + (share or 0) * box["width"], box["y"] + box["height"] / 2
        places = [] if share is None else [{"x": x, "y": y}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    assert region(page).any()
    page.click("#clear")
    assert not region(page).any()


def test_a_photo_is_turned_upright(page):
    exif = Image.Exif()
    exif[0x0112] = 6
    choose(page, "content", file_of(picture(120, 80, seed=0), "turned.jpg", exif=exif))
    assert region(page).shape == (120, 80)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"These are words."},
            "notes.jpg cannot be read as a picture: choose a JPEG, PNG, WebP or GIF file.",
        ),
        (
            file_of(Image.new("1", (8200, 5000)), "wide.png"),
            "wide.png has 41.0 megapixels: at most 40 are taken.",
        ),
        (
            file_of(Image.new("L", (90, 7)), "thin.png"),
            "thin.png has 90 × 7 pixels: each side must have at least ",
        ),
    ],
    ids=["text", "too-large", "too-small"],
)
def test_what_is_no_good_is_one_sentence(page, file, sentence):
    before = region(page).shape
    choose(page, "content", file)
    assert status(page).startswith(sentence)
    assert region(page).shape == before  # what was there stays


def test_an_empty_region_is_one_sentence(page):
    page.click("#edit")
    page.wait_for_selector(READY)
    assert status(page).startswith("No region is painted: ")
    assert not page.locator("#done").is_visible()


def test_a_folder_that_lacks_a_file_is_one_sentence(chromium, address):
    with visit(chromium, address.replace("page", "broken")) as seen:
        sentence = seen.page.locator("#status.wrong").inner_text(timeout=120_000)
        assert sentence.startswith("The page cannot start: encoder.onnx is not there")
        assert not seen.page.locator("#edit").is_enabled() and seen.errors == []
