// The networks, beside the page: pictures come in once, edits are made one after another.

import * as ort from "./ort.js";
import * as numbers from "./numbers.js";

const pictures = {}; // content and style: { pixels, width, height, codes }, codes by work size
let about, encoder, generator;

async function load(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is not there: the server answered ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function start(given) {
  about = given;
  ort.env.wasm.numThreads = 1; // more need headers that not every server sends
  ort.env.wasm.wasmPaths = { mjs: new URL("ort-wasm.js", import.meta.url).href };
  ort.env.wasm.wasmBinary = await load("ort-wasm.wasm");
  const options = { executionProviders: ["wasm"] };
  encoder = await ort.InferenceSession.create(await load("encoder.onnx"), options);
  generator = await ort.InferenceSession.create(await load("generator.onnx"), options);
  return {};
}

// The size at which the networks see a picture, and that mirrored on to what they take.
function sizes({ width, height }, short) {
  const [w, h] = numbers.workingSize(width, height, short);
  const up = (size) => Math.ceil(size / about.stride) * about.stride;
  return { w, h, across: up(w), down: up(h) };
}

// Codes of a picture, kept until another one takes its place.
async function codesOf(role, short) {
  const picture = pictures[role];
  if (!picture.codes.has(short)) {
    const { width, height, pixels } = picture;
    const size = sizes(picture, short);
    const { w, h, across, down } = size;
    const seen = numbers.pictureAt(pixels, width, height, w, h);
    const image = numbers.mirrored(seen, 3, w, h, across, down);
    const given = new ort.Tensor("float32", image, [1, 3, down, across]);
    const result = await encoder.run({ image: given });
    picture.codes.set(short, { ...size, seen, content: result.content, style: result.style.data });
  }
  return picture.codes.get(short);
}

// The generator's picture in a style inside the mask, and in the codes' own outside.
async function painted(codes, style, mask) {
  const { w, h, across, down, content } = codes;
  const inside = numbers.mirrored(mask, 1, w, h, across, down);
  const styles = Float32Array.of(...codes.style, ...style);
  const regions = new Float32Array(2 * inside.length);
  regions.set(inside.map((share) => 1 - share));
  regions.set(inside, inside.length);
  const result = await generator.run({
    content,
    styles: new ort.Tensor("float32", styles, [1, 2, style.length]),
    regions: new ort.Tensor("float32", regions, [1, 2, down, across]),
  });
  return numbers.cropped(result.image.data, 3, across, down, w, h);
}

// The edited RGBA levels of the content picture.
async function edit({ mask, strength, keepDetail, workSize }) {
  const { pixels, width, height } = pictures.content;
  const codes = await codesOf("content", workSize);
  const other = (await codesOf("style", workSize)).style;
  const { w, h, seen } = codes;
  const style = codes.style.map((own, i) => own + strength * (other[i] - own));
  const small = numbers.maskAt(mask, width, height, w, h);
  let painting = await painted(codes, style, small);
  if (keepDetail) {
    codes.own ??= await painted(codes, codes.style, new Float32Array(w * h));
    const kept = (value, i) => Math.min(1, Math.max(-1, value + (seen[i] - codes.own[i])));
    painting = painting.map(kept);
  }
  const result = new Uint8ClampedArray(pixels);
  if (w === width && h === height) {
    numbers.blendPainting(result, mask, width, height, painting);
  } else {
    const target = keepDetail ? painting.map((value, i) => value - seen[i]) : painting;
    const planes = numbers.fitted(seen, small, target, w, h);
    numbers.blendFitted(result, mask, width, height, planes, w, h, keepDetail);
  }
  return { pixels: result };
}

function picture({ role, pixels, width, height }) {
  pictures[role] = { pixels, width, height, codes: new Map() };
  return {};
}

const TASKS = { start, picture, edit };
let last = Promise.resolve(); // one after another

onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      const answer = await TASKS[data.task](data.given);
      postMessage({ id: data.id, answer }, answer.pixels ? [answer.pixels.buffer] : []);
    } catch (error) {
      postMessage({ id: data.id, error: String(error?.message ?? error) });
    }
  });
};
