// What the visitor sees and paints. Pictures are kept here at full size; worker.js edits them.
"use strict";

const MEGAPIXELS = 40; // the largest picture that is taken
const VIEW = 1024; // pixels of the longer side on which is painted
const COLOUR = "#ff2d78"; // of the region
const NEXT = "Paint a region, then press Edit.";

const $ = (id) => document.getElementById(id);
const mask = $("mask").getContext("2d", { willReadFrequently: true });
const state = { ready: false, busy: 0, trouble: null, about: null, content: null, style: null };

function say(sentence, wrong = false) {
  $("status").textContent = sentence;
  $("status").classList.toggle("wrong", wrong);
}

function refresh() {
  $("edit").disabled = !(state.ready && !state.busy && state.content && state.style);
}

// ---- the worker

let worker;
const waiting = new Map(); // number of a task → what to do with its answer
let asked = 0;

function ask(task, given = {}, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, task, given }, transfer);
  });
}

function hire() {
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data: { id, answer, error } }) => {
    const task = waiting.get(id);
    waiting.delete(id);
    if (error) task?.reject(new Error(error));
    else task?.resolve(answer);
  };
  worker.onerror = (event) => {
    const error = new Error(event.message || "worker.js failed");
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
}

// ---- pictures

function blank(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

// A picture at full size, turned upright by the browser's decoder and laid on white.
async function decoded(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${name} cannot be read as a picture: choose a JPEG, PNG, WebP or GIF file.`);
  }
  const { width, height } = bitmap;
  const size = (width * height) / 1e6;
  if (size > MEGAPIXELS) {
    throw new Error(`${name} has ${size.toFixed(1)} megapixels: at most ${MEGAPIXELS} are taken.`);
  }
  const least = state.about.stride * state.about.least_strides;
  if (Math.min(width, height) < least) {
    const got = `${name} has ${width} × ${height} pixels`;
    throw new Error(`${got}: each side must have at least ${least}.`);
  }
  const canvas = blank(width, height);
  const context = canvas.getContext("2d", { alpha: true, willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  if (context.getImageData(width - 1, height - 1, 1, 1).data[3] !== 255) {
    throw new Error(`${name}: this browser has no room for ${size.toFixed(1)} megapixels.`);
  }
  return canvas;
}

function show(canvas, target) {
  const scale = Math.min(1, VIEW / Math.max(canvas.width, canvas.height));
  target.width = Math.max(1, Math.round(canvas.width * scale));
  target.height = Math.max(1, Math.round(canvas.height * scale));
  const context = target.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, target.width, target.height);
}

// Takes a picture as content or as style; what was there stays where it cannot be read.
async function take(role, blob, name) {
  state.busy++;
  refresh();
  say(`Reading ${name} …`);
  try {
    const canvas = await decoded(blob, name);
    const { width, height } = canvas;
    const { data: pixels } = canvas.getContext("2d").getImageData(0, 0, width, height);
    show(canvas, $(role));
    if (role === "content") {
      [$("mask").width, $("mask").height] = [$("content").width, $("content").height];
      $("done").hidden = true;
    }
    state[role] = canvas;
    await ask("picture", { role, pixels, width, height }, [pixels.buffer]);
    if (state.trouble) say(state.trouble, true);
    else say(state.ready ? NEXT : "Loading …");
    return true;
  } catch (error) {
    say(error.message, true);
    return false;
  } finally {
    state.busy--;
    refresh();
  }
}

function chosen(role, button) {
  const buttons = $(`${role}-examples`).querySelectorAll("button");
  for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
}

async function takeExample(role, name, button) {
  const answer = await fetch(`examples/${name}`);
  if (!answer.ok) return say(`${name} is not there: the server answered ${answer.status}.`, true);
  if (await take(role, await answer.blob(), name)) chosen(role, button);
}

function offer(role) {
  return state.about.examples.map((name) => {
    const button = document.createElement("button");
    const title = name.replace(/\.\w+$/, "");
    const image = Object.assign(new Image(), { src: `examples/${name}`, alt: title });
    Object.assign(button, { type: "button", title });
    button.setAttribute("aria-pressed", "false");
    button.append(image);
    button.onclick = () => takeExample(role, name, button);
    $(`${role}-examples`).append(button);
    return button;
  });
}

for (const role of ["content", "style"]) {
  $(`${role}-file`).onchange = async ({ target }) => {
    const [file] = target.files;
    if (file && (await take(role, file, file.name))) chosen(role, null);
    target.value = ""; // so that the same file can be chosen again
  };
}

// ---- painting

let stroke = null; // the pointer's, its points, and the mask as it was before them

function point(event) {
  const box = $("mask").getBoundingClientRect();
  const scale = $("mask").width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

// Draws the whole stroke anew: pieces would leave marks where their soft edges overlap.
function draw() {
  const { width, height } = mask.canvas;
  const size = ($("brush-size").value / 100) * Math.max(width, height);
  mask.save();
  mask.globalCompositeOperation = "copy";
  mask.drawImage(stroke.before, 0, 0);
  mask.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
  mask.strokeStyle = COLOUR;
  mask.lineCap = mask.lineJoin = "round";
  mask.lineWidth = size;
  let away = 0;
  if ($("soft").checked) {
    // only the shadow of a line that is drawn beside the canvas: all browsers blur those
    away = 2 * (width + size);
    mask.lineWidth = 0.8 * size;
    Object.assign(mask, { shadowColor: COLOUR, shadowBlur: 0.2 * size, shadowOffsetX: away });
  }
  mask.beginPath();
  const [[x, y], ...rest] = stroke.points;
  mask.moveTo(x - away, y);
  for (const [x, y] of rest.length ? rest : stroke.points) mask.lineTo(x - away, y);
  mask.stroke();
  mask.restore();
}

$("mask").onpointerdown = (event) => {
  if (stroke || event.button || !state.content) return;
  event.preventDefault();
  $("mask").setPointerCapture(event.pointerId);
  const before = blank($("mask").width, $("mask").height);
  before.getContext("2d").drawImage($("mask"), 0, 0);
  stroke = { pointer: event.pointerId, points: [point(event)], before, due: false };
  draw();
};
$("mask").onpointermove = (event) => {
  if (event.pointerId !== stroke?.pointer) return;
  stroke.points.push(point(event));
  if (stroke.due) return;
  stroke.due = true;
  requestAnimationFrame(() => {
    if (!stroke) return;
    stroke.due = false;
    draw();
  });
};
$("mask").onpointerup = $("mask").onpointercancel = (event) => {
  if (event.pointerId !== stroke?.pointer) return;
  draw();
  stroke = null;
};
$("clear").onclick = () => mask.clearRect(0, 0, mask.canvas.width, mask.canvas.height);

// The levels of the region at the size of the picture.
function levels({ width, height }) {
  let source = mask;
  if (width !== mask.canvas.width || height !== mask.canvas.height) {
    source = blank(width, height).getContext("2d", { willReadFrequently: true });
    source.drawImage(mask.canvas, 0, 0, width, height);
  }
  const { data } = source.getImageData(0, 0, width, height);
  const out = new Uint8Array(width * height);
  for (let i = 0; i < out.length; i++) out[i] = data[4 * i + 3];
  return out;
}

// ---- editing

$("strength").oninput = () => ($("strength-value").value = Number($("strength").value).toFixed(2));

async function edit() {
  const { content } = state;
  const { width, height } = content;
  const inside = levels(content);
  if (!inside.some((level) => level > 0)) {
    return say("No region is painted: paint over the part of the picture that shall change.", true);
  }
  const given = {
    mask: inside,
    strength: Number($("strength").value),
    keepDetail: $("keep-detail").checked,
    workSize: Number($("work-size").value),
  };
  say("Editing …");
  const begun = performance.now();
  const { pixels } = await ask("edit", given, [inside.buffer]);
  const seconds = (performance.now() - begun) / 1000;
  if (state.content !== content) return say("Another picture was chosen: paint a region of it.");
  for (const name of ["before", "after"]) Object.assign($(name), { width, height });
  $("before").getContext("2d").drawImage(content, 0, 0);
  $("after").getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  $("done").hidden = false;
  $("done").scrollIntoView({ block: "nearest" });
  say(`Edited in ${seconds.toFixed(1)} s.`);
}

$("edit").onclick = async () => {
  state.busy++;
  refresh();
  try {
    await edit();
  } catch (error) {
    say(`The edit failed: ${error.message}`, true);
  } finally {
    state.busy--;
    refresh();
  }
};

$("split").oninput = () => $("compare").style.setProperty("--at", `${$("split").value}%`);

$("download").onclick = () => {
  $("after").toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { download: "edited.png" });
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
};

// ---- the beginning

async function begin() {
  if (location.protocol === "file:") {
    throw new Error("a browser opens it only from a web server, such as python -m http.server");
  }
  const answer = await fetch("about.json");
  if (!answer.ok) throw new Error(`about.json: the server answered ${answer.status}`);
  state.about = await answer.json();
  for (const size of state.about.work_sizes) $("work-size").add(new Option(`${size} px`, size));
  $("work-size").value = state.about.work_size;
  hire();
  const started = ask("start", state.about);
  started.catch(() => {}); // it is waited for below, when there is a picture to look at
  const [content, style] = [offer("content"), offer("style")];
  await takeExample("content", state.about.examples[0], content[0]);
  await takeExample("style", state.about.examples[1], style[1]);
  await started;
  state.ready = true;
  refresh();
  say(NEXT);
}

begin().catch((error) => {
  state.trouble = `The page cannot start: ${error.message}.`;
  say(state.trouble, true);
});
