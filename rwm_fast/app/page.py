"""The page in a browser: what is on it, and which of the studio's doings is behind what."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from rwm_fast.app.marks import Mark, as_json, read_marks
from rwm_fast.app.studio import COLOURS, PICTURES, Studio, Style, Subject
from rwm_fast.errors import UserError, sentence_of

_HOURS = 4  # that a picture is kept
_TOOLS = (
    ("paint", "Paint", "true"),
    ("erase", "Erase", "false"),
    ("click", "Click a region", "false"),
)
_ACTS = (("all", "Whole picture"), ("undo", "Undo"), ("clear", "Clear"))
_FILES = ["image", ".heic", ".heif", ".jxl", ".jp2", ".tga"]  # what they are is read from them
_EMPTY = "Drop a picture here, or choose one below"
_CHOOSE_REGION = """() => document.querySelector("#photo .frame")?.dispatchEvent(
    new CustomEvent("region", { detail: %d }))"""
_CREDITS = (
    "Example pictures: mountains and sunset by Aitzol Berasategi (CC BY 4.0), canyon by Nikater, "
    "castle by cameralends (public domain)."
)
_SHOW_RESULT = "() => document.querySelector('#result').scrollIntoView({behavior: 'smooth'})"


@dataclass(frozen=True)
class Example:
    """Pictures of the package, and places of the one that is edited whose regions are taken."""

    title: str
    content: str
    style: str
    places: tuple[tuple[float, float], ...]

    def marks(self) -> str:
        return json.dumps(as_json([Mark("click", points=(place,)) for place in self.places]))


EXAMPLES = (
    Example(
        "Meadow in autumn",
        "mountains.jpg",
        "canyon.jpg",
        ((480.0, 430.0), (60.0, 300.0), (250.0, 400.0)),
    ),
    Example("Sky at sunset", "castle.jpg", "sunset.jpg", ((80.0, 40.0),)),
)


def build(studio: Studio, folder: Path, queue: int) -> gr.Blocks:
    """The page; results go into `folder`, and at most `queue` requests wait."""
    first = EXAMPLES[0]
    content, style = PICTURES / first.content, PICTURES / first.style
    with gr.Blocks(
        title="rwm_fast", analytics_enabled=False, delete_cache=(600, _HOURS * 3600)
    ) as page:
        gr.Markdown("# Repaint a region of a photo\nMark where, choose the style, press Edit.")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gr.Markdown("### 1  Your photo: mark what to repaint")
                photo = _subject(studio, "photo", COLOURS[: studio.regions], content, first.marks())
            with gr.Column(scale=2, min_width=320):
                gr.Markdown("### 2  The style of each region")
                with gr.Tabs(elem_id="regions"):
                    regions = [
                        _region(studio, number, None if number else style, photo)
                        for number in range(studio.regions)
                    ]
        with gr.Row(equal_height=True):
            tried = [gr.Button(f"Example: {one.title}", size="md") for one in EXAMPLES]
            detail = gr.Checkbox(True, label="Keep fine detail of the photo", container=False)
            run = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Row(elem_id="result"):
            with gr.Column(scale=3, min_width=320):
                compared = gr.ImageSlider(label="Before and after", format="png", buttons=[])
            with gr.Column(scale=2, min_width=320):
                mask = gr.Image(label="Regions", format="png", buttons=[], interactive=False)
                said = gr.Markdown(elem_id="said")
                file = gr.DownloadButton("Download (PNG, full size)", interactive=False)
        gr.Markdown(_CREDITS)
        for button, example in zip(tried, EXAMPLES, strict=True):
            show = functools.partial(_example, studio, example)
            _when(button.click, show, [], [*photo.both, *regions[0].subject.both])
        edit = functools.partial(_edit, studio, folder)
        given = [*photo.both, detail, *(part for region in regions for part in region.inputs)]
        done = _when(run.click, edit, given, [compared, mask, said, file], "minimal")
        done.success(None, js=_SHOW_RESULT, api_visibility="private")
    page.queue(max_size=queue, default_concurrency_limit=1)
    return page


def style_sheet(regions: int) -> str:
    """Of the whole page: every region's tab has its colour."""
    tabs = (
        f"#regions button[role=tab]:nth-of-type({k + 1})::before"
        f"{{content: '\\25CF'; color: {COLOURS[k]}; margin-right: 6px}}"
        for k in range(regions)
    )
    return "\n".join(["footer {display: none !important}", *tabs])


def theme() -> gr.themes.Base:
    """Gradio's own, with the fonts that the visitor's system has."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


@dataclass(frozen=True)
class _Pad:
    """A picture that is marked, and the file that it is of."""

    path: gr.State
    pad: gr.HTML

    @property
    def both(self) -> list[Any]:
        return [self.path, self.pad]


@dataclass(frozen=True)
class _Region:
    subject: _Pad
    strength: gr.Slider

    @property
    def inputs(self) -> list[Any]:
        return [*self.subject.both, self.strength]


def _subject(
    studio: Studio, name: str, colours: Sequence[str], path: Path | None, marks: str = "[]"
) -> _Pad:
    """A pad with its button, of as many regions as colours; `name` is its own in the document."""
    here, chooser = Path(__file__), f"choose-{name}"
    tools = "".join(
        f'<button type="button" data-tool="{tool}" aria-pressed="{pressed}">{title}</button>'
        for tool, title, pressed in _TOOLS
    )
    is_photo = name == "photo"
    first = 0 if is_photo else 1  # of a style picture all counts without marks
    acts = "".join(
        f'<button type="button" data-act="{act}">{title}</button>' for act, title in _ACTS[first:]
    )
    html = (
        f'<div class="frame"><canvas></canvas><p class="empty">{_EMPTY}</p></div>'
        f'<div class="tools">{tools}<label>Brush <input type="range" min="1" max="40" value="10">'
        f'</label><span class="gap"></span>{acts}</div>'
    )
    scene = {"picture": "", "size": [1, 1], "regions": {"count": 0, "image": ""}}
    scene |= _scene(studio, path, marks, colours) if path else {"value": marks}
    pad = gr.HTML(
        html_template=html,
        css_template=here.with_name("pad.css").read_text(encoding="utf-8"),
        js_on_load=here.with_name("pad.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=name,
        chooser=chooser,
        colours=list(colours),
        **scene,
    )
    subject = _Pad(gr.State(path), pad)
    title = "Choose a photo…" if is_photo else "Choose a style picture…"
    choose = gr.UploadButton(title, file_types=_FILES, elem_id=chooser, size="sm")
    opened = functools.partial(_open, studio, colours)
    _when(choose.upload, opened, [choose], subject.both, "minimal")
    _when(pad.input, functools.partial(_regions, studio, colours), subject.both, [pad])
    return subject


def _region(studio: Studio, number: int, path: Path | None, photo: _Pad) -> _Region:
    """The tab of a region; while it is open marks on the photo belong to it."""
    with gr.Tab(f"Region {number + 1}") as tab:
        subject = _subject(studio, f"style-{number + 1}", [COLOURS[number]], path)
        gr.Markdown("Marked parts alone give their style; without marks all of it does.")
        strength = gr.Slider(0, 1.5, 1, step=0.05, label="Strength")
    tab.select(None, js=_CHOOSE_REGION % number, api_visibility="private")
    return _Region(subject, strength)


# ---- what happens


def _when(
    event: Callable[..., Any],
    act: Callable[..., Any],
    given: list[Any],
    changed: list[Any],
    progress: str = "hidden",
) -> Any:
    """Does `act` on an event, of which no other program is told; what does not fit is said in one
    sentence on the page, and nothing changes."""

    @functools.wraps(act)
    def said(*values: Any) -> Any:
        try:
            return act(*values)
        except (UserError, MemoryError, RuntimeError) as error:
            sentence = sentence_of(error)
            if not sentence:
                raise
        raise gr.Error(sentence, print_exception=False)

    return event(
        said,
        given,
        changed,
        api_visibility="private",
        show_progress=progress,
        trigger_mode="always_last" if progress == "hidden" else "once",
    )


def _open(studio: Studio, colours: Sequence[str], file: str) -> tuple[Path, Any]:
    path = Path(file)
    return path, gr.HTML(**_scene(studio, path, "[]", colours))


def _example(studio: Studio, example: Example) -> tuple[Path, Any, Path, Any]:
    content, style = PICTURES / example.content, PICTURES / example.style
    photo = gr.HTML(**_scene(studio, content, example.marks(), COLOURS[: studio.regions]))
    return content, photo, style, gr.HTML(**_scene(studio, style, "[]", COLOURS[:1]))


def _regions(studio: Studio, colours: Sequence[str], path: Path | None, marks: str) -> Any:
    return gr.HTML(regions=_cover(studio, path, marks, colours))


def _edit(studio: Studio, folder: Path, *given: Any) -> tuple[Any, Any, str, Any]:
    path, marks, detail, *rest = given
    styles = [Style(Subject(*rest[k : k + 2]), rest[k + 2]) for k in range(0, len(rest), 3)]
    made = studio.edit(Subject(path, marks), styles, folder, detail)
    file = gr.DownloadButton(value=str(made.file), interactive=True)
    return (made.before, made.after), made.regions, made.said, file


def _scene(studio: Studio, path: Path, marks: str, colours: Sequence[str]) -> dict[str, Any]:
    """What a pad shows of a picture: the names are the properties in pad.js."""
    size, image = studio.shown(path)
    cover = _cover(studio, path, marks, colours)
    return {"value": marks, "picture": _url(image, "jpeg"), "size": size, "regions": cover}


def _cover(studio: Studio, path: Path | None, marks: str, colours: Sequence[str]) -> dict[str, Any]:
    """The regions that marks make, in their colours; of none nothing."""
    count, subject = len(read_marks(marks, len(colours))), Subject(path, marks)
    return {"count": count, "image": _url(studio.overlay(subject, colours), "png") if count else ""}


def _url(image: Image.Image, kind: str) -> str:
    """The picture inside an address, so that no file is made of it."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
