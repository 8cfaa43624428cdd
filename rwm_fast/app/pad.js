// A picture that is marked with a brush, an eraser and clicks. `props.value` holds the marks as JSON
// (rwm_fast/app/marks.py), in pixels of the picture; the server answers with the regions that they
// make, as an overlay. Until it does, strokes are drawn here.
const canvas = element.querySelector("canvas");
const frame = element.querySelector(".frame");
const context = canvas.getContext("2d");
const layer = document.createElement("canvas");
const brush = element.querySelector("input[type=range]");
let marks = [], stroke = null, tool = "paint", region = 0, last = null;
let picture = null, overlay = null, covered = 0; // marks that the overlay shows

const scale = () => props.size[0] / canvas.width;
const colour = (mark) => props.colours[mark.region];
const width = () => (brush.value / 100) * Math.min(...props.size);

function path(onto, mark) {
  const points = mark.points.map(([x, y]) => [x / scale(), y / scale()]);
  onto.lineWidth = mark.size / scale();
  onto.lineCap = onto.lineJoin = "round";
  onto.beginPath();
  onto.moveTo(...points[0]);
  for (const point of points.length > 1 ? points.slice(1) : points) onto.lineTo(...point);
  onto.stroke();
}

function draw() {
  if (!picture) return;
  const onto = layer.getContext("2d");
  onto.globalCompositeOperation = "source-over";
  onto.clearRect(0, 0, layer.width, layer.height);
  if (overlay) onto.drawImage(overlay, 0, 0, layer.width, layer.height);
  const waiting = [];
  for (const mark of [...marks.slice(covered), ...(stroke ? [stroke] : [])]) {
    onto.globalCompositeOperation = mark.kind === "erase" ? "destination-out" : "source-over";
    onto.strokeStyle = onto.fillStyle = colour(mark);
    if (mark.kind === "all") onto.fillRect(0, 0, layer.width, layer.height);
    else if (mark.kind === "click") waiting.push(mark);
    else path(onto, mark);
  }
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 0.55;
  context.drawImage(layer, 0, 0);
  context.globalAlpha = 1;
  for (const mark of waiting) ring(mark.points[0], 7, colour(mark));
  if (last && (tool === "paint" || tool === "erase")) ring(last, width() / scale() / 2, "#fff");
}

function ring([x, y], radius, shade) {
  for (const [thick, tone] of [[3, "#0008"], [1.5, shade]]) {
    context.lineWidth = thick;
    context.strokeStyle = tone;
    context.beginPath();
    context.arc(x / scale(), y / scale(), radius, 0, 2 * Math.PI);
    context.stroke();
  }
}

function send() {
  props.value = JSON.stringify(marks);
  trigger("input");
  draw();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const at = (part, full, most) => Math.round(Math.min(Math.max(part / full, 0), 1) * most * 10) / 10;
  const [w, h] = props.size;
  return [at(event.clientX - box.left, box.width, w), at(event.clientY - box.top, box.height, h)];
}

canvas.addEventListener("pointerdown", (event) => {
  if (!picture || event.button) return;
  const point = place(event);
  if (tool === "click") {
    const inside = point.map((value, axis) => Math.min(value, props.size[axis] - 1));
    marks.push({ kind: "click", region, points: [inside] });
    send();
    return;
  }
  canvas.setPointerCapture(event.pointerId);
  stroke = { kind: tool, region, size: width(), points: [point] };
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!picture) return;
  last = place(event);
  if (stroke) {
    const [x, y] = stroke.points.at(-1);
    if (Math.hypot(last[0] - x, last[1] - y) > 2 * scale()) stroke.points.push(last);
  }
  draw();
});
canvas.addEventListener("pointerleave", () => { last = null; draw(); });
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => {
    if (!stroke) return;
    marks.push(stroke);
    stroke = null;
    send();
  });

for (const button of element.querySelectorAll("button"))
  button.addEventListener("click", () => {
    const { tool: chosen, act } = button.dataset;
    if (chosen) {
      tool = chosen;
      for (const other of element.querySelectorAll("[data-tool]"))
        other.setAttribute("aria-pressed", other === button);
      return;
    }
    if (!picture) return;
    if (act === "all") marks.push({ kind: "all", region });
    if (act === "undo") marks.pop();
    if (act === "clear") marks = [];
    if (act !== "all") covered = marks.length;
    if (!marks.length) overlay = null;
    send();
  });

frame.addEventListener("region", (event) => { region = event.detail; });

// A picture that is dropped goes the way of one that is chosen.
for (const name of ["dragover", "drop"])
  frame.addEventListener(name, (event) => {
    event.preventDefault();
    const button = document.getElementById(props.chooser);
    const input = button.parentElement.querySelector("input[type=file]");
    if (name === "drop" && event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    }
  });

function load(source, then) {
  const image = new Image();
  image.onload = () => then(image);
  image.src = source;
}

function show() {
  if (!props.picture) return;
  load(props.picture, (image) => {
    picture = image;
    [canvas.width, canvas.height] = [layer.width, layer.height] = [image.width, image.height];
    frame.classList.add("filled");
    cover();
  });
}

function cover() {
  const { count, image } = props.regions;
  if (!image) {
    [overlay, covered] = [null, 0];
    return draw();
  }
  load(image, (loaded) => { [overlay, covered] = [loaded, count]; draw(); });
}

function take() {
  marks = JSON.parse(props.value || "[]");
  draw();
}

watch(["picture"], show);
watch(["regions"], cover);
watch(["value"], take);
take();
show();
