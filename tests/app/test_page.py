"""The page in a browser, with the weights of the package, started as a user starts it."""

import functools
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from chromium import visit
from PIL import Image

from rwm_fast import examples

pytestmark = pytest.mark.skipif(
    find_spec("gradio") is None, reason="no gradio (pip install 'rwm_fast[app]')"
)

MOUNTAINS = examples.FOLDER / "mountains.jpg"
SECRET = Path(__file__)  # a file that nobody uploaded


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, folder for temporary files) of the command, which leaves nothing there."""
    temporary = tmp_path_factory.mktemp("temporary")
    # It finds what this process finds: plain `pytest` may have been told where gradio is.
    paths = [os.environ["PYTHONPATH"], *sys.path]
    env = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "rwm_fast.app", "--port", "0", "--max-mb", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), address
            yield address, temporary
        finally:
            process.terminate()
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def page(chromium, server):
    """The page in a window; at the end nothing was asked for elsewhere and no script has failed."""
    with visit(chromium, server[0]) as seen:
        seen.page.set_default_timeout(180_000)
        seen.page.wait_for_selector("#photo .filled")
        seen.page.wait_for_selector("#style-1 .filled")
        yield seen.page
        assert seen.outside == [] and seen.errors == []


def act(page, name: str) -> None:
    page.click(f"#photo .tools button:text-is('{name}')")


def stroke(page, *points: tuple[float, float]) -> None:
    """Points are shares of the photo's width and height."""
    canvas = page.locator("#photo canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def choose(page, what: str, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(f"#choose-{what}")
    chooser.value.set_files(file)


def edited(page) -> np.ndarray:
    """Presses Edit, waits, downloads."""
    shown = "[...document.querySelectorAll('#result img')].map(image => image.src).join()"
    before = page.evaluate(shown)
    page.click("#edit")
    page.wait_for_function(f"was => {shown} != was", arg=before)
    with page.expect_download() as found:
        page.click("text=Download (PNG, full size)")
    assert found.value.suggested_filename.endswith("-edited.png")
    with Image.open(found.value.path()) as image:
        assert "rwm_fast" in image.text
        return np.asarray(image.convert("RGB"), int)


def told(page, sentence: str) -> None:
    """Waits until the page says so, then puts the message away."""
    page.get_by_text(sentence).first.wait_for()
    page.get_by_label("Close").or_(page.locator(".toast-close")).first.click()
    page.get_by_text(sentence).first.wait_for(state="detached")


@functools.cache
def mountains() -> np.ndarray:
    with Image.open(MOUNTAINS) as image:
        return np.asarray(image.convert("RGB"), int)


def test_a_stroke_is_edited_and_the_rest_stays(page):
    act(page, "Clear")
    act(page, "Paint")
    stroke(page, (0.3, 0.8), (0.7, 0.8))
    after, before = edited(page), mountains()
    assert after.shape == before.shape
    height, width = before.shape[:2]
    y, x = np.mgrid[:height, :width]
    near = np.hypot(x - np.clip(x, 0.3 * width, 0.7 * width), y - 0.8 * height)
    differs = (after != before).any(-1)
    assert differs[near < 0.03 * height].mean() > 0.9  # the brush is 10 % of the short side wide
    assert not differs[near > 0.1 * height].any()
    assert page.locator("#result img").count() >= 3  # before, after and regions


def test_a_click_edits_the_region_around_it(page):
    act(page, "Clear")
    act(page, "Click a region")
    stroke(page, (0.6, 0.05))
    differs = (edited(page) != mountains()).any(-1)
    with Image.open(examples.FOLDER / "mountains-sky.png") as mask:
        sky = np.asarray(mask.convert("L")) > 127
    assert differs[sky].mean() > 0.8 and differs[~sky].mean() < 0.2


def test_wrong_input_is_one_sentence_and_nothing_breaks(page, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    choose(page, "photo", text)
    told(page, "text.jpg cannot be read as a picture: no image format is recognised")
    act(page, "Clear")
    page.click("#edit")
    told(page, "nothing is marked: paint on your picture, or click on it")
    page.get_by_role("tab", name="Region 2").click()
    act(page, "Paint")
    stroke(page, (0.5, 0.2))
    page.click("#edit")
    told(page, "region 2 has no style: choose a picture for it")
    choose(page, "style-2", examples.FOLDER / "sunset.jpg")
    page.wait_for_selector("#style-2 .filled")
    differs = (edited(page) != mountains()).any(-1)
    assert differs[:200].any() and not differs[400:].any()


def test_a_picture_that_is_dropped_is_edited(page):
    mine, file = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8), io.BytesIO()
    Image.fromarray(mine).save(file, "png")
    dropped = page.evaluate_handle(
        "bytes => { const carried = new DataTransfer();"
        " carried.items.add(new File([new Uint8Array(bytes)], 'mine.png', {type: 'image/png'}));"
        " return carried; }",
        list(file.getvalue()),
    )
    page.dispatch_event("#photo .frame", "drop", {"dataTransfer": dropped})
    page.wait_for_function("document.querySelector('#photo canvas').width == 120")
    act(page, "Whole picture")
    after = edited(page)
    assert after.shape == mine.shape and (after != mine).any()


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    width = page.locator("#photo canvas").bounding_box()["width"]
    assert 100 < width <= 390


# ---- without a browser: what another program may ask for


def answer(address: str, data=None, **headers) -> tuple[int, bytes]:
    body = None if data is None else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(address, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_page_is_for_this_machine(server):
    status, body = answer(server[0])
    assert status == 200 and b"gradio" in body
    assert answer(server[0], Host="elsewhere.example")[0] == 404
    call = {"data": [], "fn_index": 0, "session_hash": "elsewhere"}
    for origin in ("http://elsewhere.example", "null"):
        assert answer(server[0] + "gradio_api/queue/join", call, Origin=origin)[0] == 404


@pytest.mark.parametrize("path", ["/etc/passwd", str(SECRET), str(MOUNTAINS), "http://127.0.0.1/"])
def test_no_file_of_the_host_is_served(server, path):
    address, temporary = server
    uploads = next(temporary.iterdir()).resolve() / "uploads"
    up = "/".join([".."] * (len(uploads.parts) - 1))
    for name in (path, f"{uploads}/{up}{path}"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy="):
            status, body = answer(f"{address}{route}{name}")
            assert status in (403, 404), (route, name, status)
            assert len(body) < 1000 and b"root:" not in body


def test_other_programs_find_no_way_in(server):
    for route in ("gradio_api/info", "gradio_api/call/edit", "monitoring", "gradio_api/vibe-code"):
        assert answer(server[0] + route)[0] == 404
    config = json.loads(answer(server[0] + "config")[1])
    assert config["analytics_enabled"] is False
    assert {function["api_visibility"] for function in config["dependencies"]} == {"private"}


def test_a_path_in_the_place_of_an_upload_is_refused(server):
    address = server[0]
    config = json.loads(answer(address + "config")[1])
    uploads = [d for d in config["dependencies"] if d["targets"][0][1] == "upload"]
    assert len(uploads) == 5  # the photo's and the four styles'
    for path in ("/etc/passwd", str(MOUNTAINS.parent.parent / "weights" / "photos.md")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = {"data": [file], "fn_index": uploads[0]["id"], "session_hash": "other"}
        assert answer(address + "gradio_api/queue/join", call)[0] == 200
        _, said = answer(address + "gradio_api/queue/data?session_hash=other")
        last = json.loads(said.decode().strip().rsplit("\n\n", 2)[-2].removeprefix("data: "))
        assert last["msg"] == "process_completed" and last["success"] is False, said
        assert b"got a path" not in said  # gradio has refused it before the studio could


def test_a_file_above_the_limit_is_refused(server):
    address, temporary = server
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + b"0" * 1_100_000 + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(address + "gradio_api/upload", body, headers)
    with pytest.raises(OSError) as found:  # the answer, or the connection is closed on the way
        urllib.request.urlopen(request, timeout=60)
    if isinstance(found.value, urllib.error.HTTPError):
        found.value.close()
        assert found.value.code == 413
    assert not [f for f in temporary.rglob("*") if f.is_file() and f.stat().st_size > 1_000_000]
