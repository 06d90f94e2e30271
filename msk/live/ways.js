// Ways drawn in advance, and grids: pure arithmetic. Plain script, before stage.js.
//
// A way's nodes are [seconds, x, y] in the order of time, from 0; x and y are shares of the picture. `tall` is the
// picture's height over its width, so that lengths are counted in widths.

const WAY_RATE = 20;            // nodes a second of what a hand has drawn
const WAY_PACE = 0.35;          // widths a second between clicked nodes

const distance = (a, b, tall) => Math.hypot(b[1] - a[1], (b[2] - a[2]) * tall);
const mix = (a, b, share) => a.map((v, i) => v + (b[i] - v) * share);

// Where a way is after so many seconds of its own time, as a node.
function wayAt(nodes, t) {
  const after = nodes.findIndex((node) => node[0] > t);
  if (after <= 0) return after === 0 ? nodes[0] : lastOf(nodes);
  const a = nodes[after - 1], b = nodes[after];
  return mix(a, b, (t - a[0]) / (b[0] - a[0]));
}

// The same way in so many nodes, evenly in time.
function byTime(nodes, count) {
  const end = lastOf(nodes)[0];
  return Array.from({ length: count }, (_, i) => {
    const t = end * i / (count - 1);
    return [t, ...wayAt(nodes, t).slice(1)];
  });
}

// The same way in so many nodes an equal distance and an equal time apart; it lasts as long as before.
function byLength(nodes, count, tall) {
  let far = 0;
  const along = nodes.map((node, i) => {
    far += i ? distance(nodes[i - 1], node, tall) : 0;
    return [far, node[1], node[2]];
  });
  const end = lastOf(nodes)[0];
  return byTime(along, count).map(([, x, y], i) => [end * i / (count - 1), x, y]);
}

// Corners become curves: each node moves towards its neighbours, both ends stay.
function smoothed(nodes, rounds) {
  for (let round = 0; round < rounds; round++)
    nodes = nodes.map((b, i) => {
      const a = nodes[i - 1], c = nodes[i + 1];
      return a && c ? [b[0], (a[1] + 2 * b[1] + c[1]) / 4, (a[2] + 2 * b[2] + c[2]) / 4] : b;
    });
  return nodes;
}

// What a hand drew, [milliseconds, x, y] -> a way; clicked places get their times from their distances.
function wayOfHand(samples, most) {
  const began = samples[0][0], seconds = Math.max(0.2, (lastOf(samples)[0] - began) / 1000);
  const nodes = samples.map(([t, x, y]) => [(t - began) / 1000, x, y]);
  lastOf(nodes)[0] = seconds;
  return byTime(nodes, Math.min(most, Math.max(2, Math.round(seconds * WAY_RATE) + 1)));
}

function wayOfClicks(places, tall) {
  let t = 0;
  return places.map((place, i) => {
    t += i ? Math.max(0.1, distance(places[i - 1], place, tall) / WAY_PACE) : 0;
    return [t, place[1], place[2]];
  });
}

// The time at which a way comes nearest to a place; where it crosses itself, the one near `guess`.
function timeNear(nodes, x, y, guess, tall) {
  let best = 0, least = Infinity;
  for (let i = 1; i < nodes.length; i++) {
    const [t0, x0, y0] = nodes[i - 1], [t1, x1, y1] = nodes[i], dx = x1 - x0, dy = (y1 - y0) * tall;
    const share = clamp(((x - x0) * dx + (y - y0) * tall * dy) / (dx * dx + dy * dy || 1)), t = t0 + (t1 - t0) * share;
    const cost = distance([t, x, y], mix(nodes[i - 1], nodes[i], share), tall) + 0.02 * Math.min(3, Math.abs(t - guess));
    if (cost < least) { best = t; least = cost; }
  }
  return best;
}

// The ruler of a way: a tick for each `step` frames, every so many of them with its number.
function wayRuler(nodes, speed, fps, tall, widthPixels) {
  const seconds = lastOf(nodes)[0], frames = Math.floor(seconds / speed * fps + 1e-6);
  let far = 0;
  for (let i = 1; i < nodes.length; i++) far += distance(nodes[i - 1], nodes[i], tall) * widthPixels;
  const apart = far / Math.max(1, frames), steps = [1, 2, 3, 6, 12, 24, 48, 96, 192, 384, 768, 1536, 3072, 6144];
  const step = steps.find((s) => s * apart >= 8) || 6144;
  const named = steps.find((s) => s % step === 0 && s * apart >= 38) || 6144;
  return Array.from({ length: Math.floor(frames / step) + 1 }, (_, i) =>
    ({ frame: i * step, t: i * step * speed / fps, named: i * step % named === 0 }));
}

// Where the engine will put the points of a grid: box [left, top, right, bottom].
function gridSpots([left, top, right, bottom], spacing, tall) {
  const columns = Math.max(1, Math.floor((right - left) / spacing + 1e-6));
  const rows = Math.max(1, Math.floor((bottom - top) * tall / spacing + 1e-6));
  return Array.from({ length: columns * rows }, (_, k) => ({
    x: left + (k % columns + 0.5) * (right - left) / columns,
    y: top + (Math.floor(k / columns) + 0.5) * (bottom - top) / rows }));
}
