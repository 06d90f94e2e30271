// What is drawn over the picture: points, ways with their rulers, boxes. Plain script, before stage.js.
//
// Each function gets a sheet {ink, w, h, unit}: a 2D context, its size in its own pixels, and how many of them one pixel of
// the page is. Places are shares of the picture.

const COLOURS = { live: "61,220,151", pin: "255,93,93", path: "90,169,255", camera: "255,255,255" };

function line({ ink, w, h }, places) {
  ink.beginPath();
  places.forEach(({ x, y }, i) => i ? ink.lineTo(x * w, y * h) : ink.moveTo(x * w, y * h));
  ink.stroke();
}

function disc({ ink, w, h, unit }, { x, y }, radius) {
  ink.beginPath(); ink.arc(x * w, y * h, radius * unit, 0, 7);
}

function inkTrail(sheet, trail, colour) {
  sheet.ink.lineCap = "round"; sheet.ink.lineWidth = 3 * sheet.unit;
  for (let i = 1; i < trail.length; i++) {
    sheet.ink.strokeStyle = `rgba(${colour},${0.55 * i / trail.length})`;
    line(sheet, [trail[i - 1], trail[i]]);
  }
}

// A dashed line from where a point is to where the hand wants it.
function inkLeash(sheet, here, wanted, colour) {
  const { ink, unit } = sheet;
  ink.strokeStyle = "rgba(255,255,255,.55)"; ink.lineWidth = 1.5 * unit; ink.setLineDash([4 * unit, 4 * unit]);
  line(sheet, [here, wanted]);
  ink.setLineDash([]);
  ink.strokeStyle = `rgba(${colour},.95)`; ink.lineWidth = 2 * unit;
  disc(sheet, wanted, 7); ink.stroke();
}

function inkPoint(sheet, here, { kind, leaving, held, chosen, over }) {
  const { ink, unit, w, h } = sheet, r = held ? 8 : 6.5, colour = COLOURS[kind];
  ink.fillStyle = "rgba(0,0,0,.3)";
  ink.beginPath(); ink.arc(here.x * w, here.y * h + unit, (r + 2.5) * unit, 0, 7); ink.fill();
  ink.fillStyle = leaving ? "rgba(0,0,0,.25)" : `rgb(${colour})`;
  ink.strokeStyle = leaving ? `rgb(${colour})` : "#fff"; ink.lineWidth = 2 * unit;
  disc(sheet, here, r); ink.fill(); ink.stroke();
  if (kind === "pin") { ink.fillStyle = "#fff"; disc(sheet, here, 2.2); ink.fill(); }
  if (chosen || over) {
    ink.strokeStyle = chosen ? "rgba(255,255,255,.9)" : "rgba(255,255,255,.45)"; ink.lineWidth = 1.5 * unit;
    disc(sheet, here, r + 5); ink.stroke();
  }
}

function inkLabel({ ink, w, h, unit }, { x, y }, text, dx = 0, dy = 0, bright = false) {
  ink.font = `600 ${11 * unit}px system-ui, sans-serif`; ink.textAlign = "center"; ink.textBaseline = "middle";
  const wide = ink.measureText(text).width / 2 + 5 * unit;
  const cx = Math.min(Math.max(x * w + dx * unit, wide), w - wide);
  const cy = Math.min(Math.max(y * h + dy * unit, 8 * unit), h - 8 * unit);
  ink.fillStyle = bright ? `rgb(${COLOURS.path})` : "rgba(5,7,10,.66)";
  ink.beginPath(); ink.roundRect(cx - wide, cy - 8 * unit, 2 * wide, 16 * unit, 5 * unit); ink.fill();
  ink.fillStyle = bright ? "#04101f" : "#fff"; ink.fillText(text, cx, cy + 0.5 * unit);
}

// A way with its ruler; `head`: the time it has been played to, or null.
function inkWay(sheet, { nodes, loop, speed }, { fps, chosen, head }) {
  const { ink, w, h, unit } = sheet, tall = h / w, places = nodes.map(([, x, y]) => ({ x, y }));
  ink.lineCap = ink.lineJoin = "round";
  ink.strokeStyle = "rgba(5,12,24,.5)"; ink.lineWidth = 6 * unit; line(sheet, places);
  ink.strokeStyle = `rgba(${COLOURS.path},${chosen ? 0.85 : 0.6})`; ink.lineWidth = 3 * unit; line(sheet, places);
  if (loop === "loop") {
    ink.setLineDash([2 * unit, 6 * unit]); line(sheet, [lastOf(places), places[0]]); ink.setLineDash([]);
  }
  if (head !== null) {
    const done = nodes.filter((node) => node[0] < head).concat([wayAt(nodes, head)]);
    ink.strokeStyle = "#d9ecff"; ink.lineWidth = 3 * unit; line(sheet, done.map(([, x, y]) => ({ x, y })));
  }
  const end = lastOf(nodes)[0], labels = [];
  for (const { t, frame, named } of wayRuler(nodes, speed, fps, tall, w / unit)) {
    const [, x, y] = wayAt(nodes, t), a = wayAt(nodes, Math.max(0, t - 0.04)), b = wayAt(nodes, Math.min(end, t + 0.04));
    const far = Math.hypot((b[1] - a[1]) * w, (b[2] - a[2]) * h);
    if (far < 1e-6) continue;
    const across = { x: -(b[2] - a[2]) * h / far, y: (b[1] - a[1]) * w / far }, long = (named ? 6 : 3.5) * unit;
    ink.strokeStyle = named ? "#fff" : "rgba(255,255,255,.75)"; ink.lineWidth = 1.5 * unit;
    ink.beginPath();
    ink.moveTo(x * w - across.x * long, y * h - across.y * long);
    ink.lineTo(x * w + across.x * long, y * h + across.y * long);
    ink.stroke();
    const crowded = labels.some((l) => Math.hypot((l.x - x) * w, (l.y - y) * h) < 34 * unit);
    if (!named || !chosen || crowded) continue;
    labels.push({ x, y });
    inkLabel(sheet, { x, y }, String(frame), across.x * 16, across.y * 16);
  }
  ink.strokeStyle = "#fff"; ink.fillStyle = `rgb(${COLOURS.path})`; ink.lineWidth = 1.5 * unit;
  for (const place of [places[0], lastOf(places)]) { disc(sheet, place, 3.5); ink.fill(); ink.stroke(); }
}

// What a way can be bent by; `chosen`: which of them, or null.
function inkNodes(sheet, nodes, chosen) {
  const { ink, w, h, unit } = sheet, half = (nodes.length > 40 ? 2.5 : 4) * unit;
  ink.lineWidth = 1.5 * unit;
  nodes.forEach(([, x, y], i) => {
    const size = i === chosen ? half + 1.5 * unit : half;
    ink.fillStyle = i === chosen ? `rgb(${COLOURS.path})` : "#fff"; ink.strokeStyle = i === chosen ? "#fff" : "#0d2a4d";
    ink.beginPath(); ink.rect(x * w - size, y * h - size, 2 * size, 2 * size); ink.fill(); ink.stroke();
  });
}

// A way that is being drawn: nodes so far, and a line to the pointer if it is clicked together.
function inkDraft(sheet, nodes, pointer) {
  const { ink, unit } = sheet, places = nodes.map(([, x, y]) => ({ x, y }));
  ink.lineCap = ink.lineJoin = "round"; ink.strokeStyle = `rgb(${COLOURS.path})`; ink.lineWidth = 3 * unit;
  line(sheet, places);
  if (pointer) {
    ink.setLineDash([5 * unit, 6 * unit]); line(sheet, [lastOf(places), pointer]); ink.setLineDash([]);
    ink.fillStyle = "#fff"; ink.lineWidth = 2 * unit;
    for (const place of places) { disc(sheet, place, 4); ink.fill(); ink.stroke(); }
  }
}

// A box that is being dragged out, and the points it would be filled with.
function inkBox(sheet, [left, top, right, bottom], spots, kind, fits) {
  const { ink, w, h, unit } = sheet, colour = fits ? "#fff" : `rgb(${COLOURS.pin})`;
  ink.fillStyle = "rgba(122,162,255,.14)"; ink.fillRect(left * w, top * h, (right - left) * w, (bottom - top) * h);
  ink.setLineDash([5 * unit, 4 * unit]); ink.strokeStyle = colour; ink.lineWidth = 1.5 * unit;
  ink.strokeRect(left * w, top * h, (right - left) * w, (bottom - top) * h); ink.setLineDash([]);
  ink.fillStyle = `rgba(${COLOURS[kind]},.8)`;
  for (const spot of spots) { disc(sheet, spot, 4); ink.fill(); }
}

// The outline of what points hold.
function inkThing(sheet, corners) {
  const { ink, unit } = sheet, places = [...corners, corners[0]].map(([x, y]) => ({ x, y }));
  ink.lineJoin = "round";
  for (const [colour, wide] of [["rgba(5,12,24,.45)", 4], [`rgba(${COLOURS.live},.9)`, 1.6]]) {
    ink.strokeStyle = colour; ink.lineWidth = wide * unit; line(sheet, places);
  }
}

// The camera's own grid, while it flies.
function inkFlight(sheet, marks) {
  const { ink, w, h, unit } = sheet;
  ink.strokeStyle = "rgba(255,255,255,.6)"; ink.lineWidth = 1.2 * unit;
  for (const { x, y } of marks) {
    ink.beginPath();
    ink.moveTo(x * w - 3 * unit, y * h); ink.lineTo(x * w + 3 * unit, y * h);
    ink.moveTo(x * w, y * h - 3 * unit); ink.lineTo(x * w, y * h + 3 * unit);
    ink.stroke();
  }
}

// The keyboard's cross.
function inkCross(sheet, { x, y }) {
  const { ink, w, h, unit } = sheet;
  for (const [colour, wide] of [["rgba(0,0,0,.6)", 4], ["#fff", 1.5]]) {
    ink.strokeStyle = colour; ink.lineWidth = wide * unit;
    ink.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      ink.moveTo(x * w + 4 * dx * unit, y * h + 4 * dy * unit); ink.lineTo(x * w + 13 * dx * unit, y * h + 13 * dy * unit);
    }
    ink.stroke();
  }
}
