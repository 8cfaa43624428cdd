// The editor's arithmetic around the networks, as rwm_fast/models has it: compositing.py,
// pictures.py, painter.py and upsampling.py. A plane is a Float32Array of h·w numbers, row by row;
// a picture has three, in [−1, 1], one behind the other.

const RADIUS = 2; // of the windows in which an edit is fitted, in pixels of the networks' size
const RIDGE = 1e-3;

// As Python rounds: halves to the even number.
function rounded(x) {
  const whole = Math.round(x);
  return whole - x === 0.5 && whole % 2 ? whole - 1 : whole;
}

// [w, h] with the short side reduced to `short` pixels; never enlarged.
export function workingSize(width, height, short) {
  const scale = short / Math.min(width, height);
  if (scale >= 1) return [width, height];
  return [Math.max(1, rounded(width * scale)), Math.max(1, rounded(height * scale))];
}

// For each of `size` pixels, which of `length` it averages and by what weights, of sum 1: a
// triangle as wide as two of the new pixels.
function triangles(size, length) {
  const scale = length / size;
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - scale));
    const weights = new Float64Array(Math.min(length, Math.ceil(centre + scale)) - first);
    let sum = 0;
    for (let k = 0; k < weights.length; k++) {
      weights[k] = Math.max(0, 1 - Math.abs(first + k + 0.5 - centre) / scale);
      sum += weights[k];
    }
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

// Levels of `count` channels that stand `step` apart, averaged to w × h: `count` planes of levels.
function averaged(levels, step, count, width, height, w, h) {
  const across = triangles(w, width);
  const down = triangles(h, height);
  const total = new Float64Array(count * h * w);
  const line = new Float64Array(count * w);
  let top = 0; // the first row whose triangle has not ended
  for (let y = 0; y < height; y++) {
    for (let i = 0; i < w; i++) {
      const { first, weights } = across[i];
      const start = (y * width + first) * step;
      for (let c = 0; c < count; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * levels[start + k * step + c];
        line[c * w + i] = sum;
      }
    }
    while (top < h && down[top].first + down[top].weights.length <= y) top++;
    for (let j = top; j < h && down[j].first <= y; j++) {
      const weight = down[j].weights[y - down[j].first];
      for (let c = 0; c < count; c++) {
        const out = (c * h + j) * w;
        for (let i = 0; i < w; i++) total[out + i] += weight * line[c * w + i];
      }
    }
  }
  return total;
}

// RGBA levels as a picture of w × h.
export function pictureAt(pixels, width, height, w, h) {
  return Float32Array.from(averaged(pixels, 4, 3, width, height, w, h), (v) => v / 127.5 - 1);
}

// The levels of a mask as a plane of w × h in [0, 1].
export function maskAt(mask, width, height, w, h) {
  const mean = averaged(mask, 1, 1, width, height, w, h);
  return Float32Array.from(mean, (v) => Math.min(1, v / 255));
}

// Planes of w × h, mirrored on to the right and below: `across` × `down`.
export function mirrored(planes, count, w, h, across, down) {
  const out = new Float32Array(count * down * across);
  for (let c = 0; c < count; c++) {
    for (let y = 0; y < down; y++) {
      const row = (c * h + (y < h ? y : 2 * (h - 1) - y)) * w;
      for (let x = 0; x < across; x++) {
        out[(c * down + y) * across + x] = planes[row + (x < w ? x : 2 * (w - 1) - x)];
      }
    }
  }
  return out;
}

// Planes of w × h out of the left upper corner of larger ones, in [−1, 1].
export function cropped(planes, count, across, down, w, h) {
  const out = new Float32Array(count * h * w);
  for (let c = 0; c < count; c++) {
    for (let y = 0; y < h; y++) {
      const row = (c * down + y) * across;
      for (let x = 0; x < w; x++) {
        out[(c * h + y) * w + x] = Math.min(1, Math.max(-1, planes[row + x]));
      }
    }
  }
  return out;
}

// Means over windows, cut at the border.
function windowed(plane, w, h) {
  const along = new Float64Array(w * h);
  const out = new Float64Array(w * h);
  const pass = (from, to, lines, line, length, step) => {
    for (let i = 0; i < lines; i++) {
      for (let k = 0; k < length; k++) {
        const first = Math.max(0, k - RADIUS);
        const last = Math.min(length - 1, k + RADIUS);
        let sum = 0;
        for (let j = first; j <= last; j++) sum += from[i * line + j * step];
        to[i * line + k * step] = sum / (last - first + 1);
      }
    }
  };
  pass(plane, along, h, w, w, 1);
  pass(along, out, w, 1, h, w);
  return out;
}

// Solves A x = b in place for a symmetric positive A [n, n] and columns b [n, m].
function solve(a, b, n, m) {
  for (let p = 0; p < n; p++) {
    for (let r = p + 1; r < n; r++) {
      const factor = a[r * n + p] / a[p * n + p];
      for (let c = p; c < n; c++) a[r * n + c] -= factor * a[p * n + c];
      for (let c = 0; c < m; c++) b[r * m + c] -= factor * b[p * m + c];
    }
  }
  for (let r = n - 1; r >= 0; r--) {
    for (let c = 0; c < m; c++) {
      let rest = b[r * m + c];
      for (let k = r + 1; k < n; k++) rest -= a[r * n + k] * b[k * m + c];
      b[r * m + c] = rest / a[r * n + r];
    }
  }
}

// What brings `target` (three planes: a painting, or a change) to full size: in each window the A,
// b that minimise Σ |A·g + b − target|² + RIDGE·|A|², g being the colours of `seen` and the mask; A
// averaged over windows, b what is left. Three times five planes, b the last of each five.
export function fitted(seen, mask, target, w, h) {
  const area = w * h;
  const guides = [0, 1, 2].map((c) => Float64Array.from(seen.subarray(c * area, (c + 1) * area)));
  guides.push(Float64Array.from(mask));
  const outputs = [0, 1, 2].map((c) => target.subarray(c * area, (c + 1) * area));
  const n = guides.length;
  const product = (x, y) => windowed(x.map((value, i) => value * y[i]), w, h);
  const means = guides.map((g) => windowed(g, w, h));
  const meansOut = outputs.map((y) => windowed(y, w, h));
  const squares = guides.map((g, i) => guides.map((f, j) => (j < i ? null : product(g, f))));
  const shared = guides.map((g) => outputs.map((y) => product(g, y)));
  const slopes = guides.map(() => outputs.map(() => new Float64Array(area)));
  const a = new Float64Array(n * n);
  const b = new Float64Array(n * 3);
  for (let p = 0; p < area; p++) {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        const square = (squares[i][j] ?? squares[j][i])[p];
        a[i * n + j] = square - means[i][p] * means[j][p] + (i === j ? RIDGE : 0);
      }
      for (let c = 0; c < 3; c++) b[i * 3 + c] = shared[i][c][p] - means[i][p] * meansOut[c][p];
    }
    solve(a, b, n, 3);
    for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) slopes[i][c][p] = b[i * 3 + c];
  }
  const out = new Float32Array(3 * (n + 1) * area);
  for (let c = 0; c < 3; c++) {
    const rest = Float64Array.from(outputs[c]);
    for (let i = 0; i < n; i++) {
      const slope = windowed(slopes[i][c], w, h);
      for (let p = 0; p < area; p++) rest[p] -= slope[p] * guides[i][p];
      out.set(slope, (c * (n + 1) + i) * area);
    }
    out.set(rest, (c * (n + 1) + n) * area);
  }
  return out;
}

// Where each of `length` pixels lies between `size` ones: the lower, the upper and its share.
function between(length, size) {
  const low = new Int32Array(length);
  const high = new Int32Array(length);
  const share = new Float64Array(length);
  for (let i = 0; i < length; i++) {
    const at = Math.min(size - 1, Math.max(0, ((i + 0.5) * size) / length - 0.5));
    low[i] = Math.floor(at);
    high[i] = Math.min(low[i] + 1, size - 1);
    share[i] = at - low[i];
  }
  return { low, high, share };
}

// Writes an edit into RGBA levels, by the levels of the mask; where that is 0 nothing is touched.
// `paint(x, y, own, level, edited)` fills in the edited colours of a pixel in [−1, 1] from its own;
// `row(y)` is called before those of a row.
function blend(pixels, mask, width, height, row, paint) {
  const own = new Float64Array(3);
  const edited = new Float64Array(3);
  for (let y = 0; y < height; y++) {
    let begun = false;
    for (let x = 0; x < width; x++) {
      const level = mask[y * width + x];
      if (level === 0) continue;
      if (!begun) row(y);
      begun = true;
      const at = (y * width + x) * 4;
      for (let c = 0; c < 3; c++) own[c] = pixels[at + c] / 127.5 - 1;
      paint(x, y, own, level, edited);
      for (let c = 0; c < 3; c++) {
        const value = Math.min(1, Math.max(-1, edited[c]));
        pixels[at + c] = (own[c] + (level / 255) * (value - own[c]) + 1) * 127.5;
      }
    }
  }
}

// The painting is as large as the picture.
export function blendPainting(pixels, mask, width, height, painting) {
  const area = width * height;
  const paint = (x, y, own, level, edited) => {
    for (let c = 0; c < 3; c++) edited[c] = painting[c * area + y * width + x];
  };
  blend(pixels, mask, width, height, () => {}, paint);
}

// What `fitted` gave of w × h brings a painting to the picture's size, or with `adds` a change.
export function blendFitted(pixels, mask, width, height, planes, w, h, adds) {
  const columns = between(width, w);
  const rows = between(height, h);
  const lines = new Float64Array(15 * w); // the planes at one row of the picture
  const row = (y) => {
    const share = rows.share[y];
    for (let k = 0; k < 15; k++) {
      const lower = (k * h + rows.low[y]) * w;
      const upper = (k * h + rows.high[y]) * w;
      for (let x = 0; x < w; x++) {
        lines[k * w + x] = planes[lower + x] + share * (planes[upper + x] - planes[lower + x]);
      }
    }
  };
  const paint = (x, y, own, level, edited) => {
    const low = columns.low[x];
    const high = columns.high[x];
    const share = columns.share[x];
    const at = (k) => lines[k * w + low] + share * (lines[k * w + high] - lines[k * w + low]);
    for (let c = 0; c < 3; c++) {
      const slope = at(5 * c) * own[0] + at(5 * c + 1) * own[1] + at(5 * c + 2) * own[2];
      edited[c] = (adds ? own[c] : 0) + slope + (at(5 * c + 3) * level) / 255 + at(5 * c + 4);
    }
  };
  blend(pixels, mask, width, height, row, paint);
}
