// How the stage looks and what it says: its style, its parts, the list of its keys. Plain script, before stage.js.

const STAGE_CSS = `
:host { display: block; width: 100%; container-type: inline-size; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
.stage { --live: #3ddc97; --pin: #ff5d5d; --path: #5aa9ff; --ink: #e8ecf3; --dim: #98a2b5; --card: #12151c; --soft: #1a1f2a;
  --line: #2a3140; --on: #2c3547; --accent: #7aa2ff; --bad: #ff8f8f; --shade: rgb(0 0 0 / .3);
  font: 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 16px; padding: 12px; max-width: 640px; margin: 0 auto; outline: none;
  box-shadow: 0 12px 40px var(--shade); color-scheme: dark; }
.stage[data-theme=light] { --ink: #19202e; --dim: #5d6880; --card: #fff; --soft: #f4f6fa; --line: #d8deea; --on: #dfe7f7;
  --accent: #2f5bea; --bad: #b3261e; --shade: rgb(30 45 80 / .12); color-scheme: light; }
.stage:focus-visible { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent), 0 12px 40px var(--shade); }

.head { display: flex; justify-content: space-between; align-items: center; gap: 14px; height: 20px; margin: 0 4px 10px;
  white-space: nowrap; overflow: hidden; font-variant-numeric: tabular-nums; }
.who { display: flex; align-items: center; gap: 10px; font-weight: 600; padding-left: 4px; }
.dot { width: 9px; height: 9px; border-radius: 50%; background: var(--dim); transition: background .2s; }
.dot.playing { background: var(--live); box-shadow: 0 0 0 4px rgb(61 220 151 / .18); }
.dot.paused { background: #ffc857; } .dot.failed, .dot.lost { background: var(--pin); }
.hud { display: flex; gap: 10px; color: var(--dim); }
.hud b { color: var(--ink); font-weight: 600; }
.memory { display: inline-flex; gap: 2px; } .memory i { width: 6px; height: 10px; border-radius: 2px; background: var(--dim); }
.memory .sink { background: var(--path); } .memory .now { background: var(--live); } .fewer { color: #e0a030; }

.screen { position: relative; width: 100%; aspect-ratio: 1; max-width: 60vh; max-height: 60vh; margin: 0 auto;
  border-radius: 10px; overflow: hidden;
  background: #05070a; color: #e8ecf3; touch-action: none; user-select: none; -webkit-user-select: none; }
canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.top { cursor: crosshair; } .top.over { cursor: grab; } .top.dragging { cursor: grabbing; }
.stage[data-using=camera] .top:not(.over):not(.dragging) { cursor: move; }
.veil { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; text-align: center;
  padding: 24px; background: rgb(5 7 10 / .74); font-size: 15px; pointer-events: none; opacity: 0; transition: opacity .2s; }
.veil.on { opacity: 1; }
.hint { position: absolute; left: 50%; bottom: 14px; transform: translateX(-50%); padding: 7px 14px; border-radius: 18px;
  width: max-content; max-width: calc(100% - 24px); background: rgb(5 7 10 / .72); pointer-events: none; opacity: 0;
  transition: opacity .25s; text-align: center; }
.hint.on { opacity: 1; } .hint.error { background: rgb(122 24 32 / .92); }
.help { position: absolute; inset: 0; margin: 0; padding: 16px 20px; display: none; background: rgb(5 7 10 / .92);
  grid-template-columns: max-content 1fr; gap: 4px 14px; align-content: safe center; overflow: auto; font-size: 12.5px;
  touch-action: pan-y; }
.help.on { display: grid; } .help dt { text-align: right; font-weight: 600; } .help dd { margin: 0; color: #98a2b5; }

button, select { font: inherit; color: var(--ink); background: var(--soft); border: 1px solid var(--line);
  border-radius: 9px; height: 34px; padding: 0 12px; cursor: pointer; }
button { display: inline-flex; align-items: center; justify-content: center; gap: 7px; white-space: nowrap; }
button:disabled { opacity: .4; cursor: default; }
button[aria-pressed=true] { background: var(--on); }
:is(button, select, input):focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
button.main { background: var(--live); border-color: var(--live); color: #06120c; font-weight: 650; }
button.square { width: 34px; padding: 0; } select { padding: 0 6px; }
svg { width: 18px; height: 18px; fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round;
  stroke-linejoin: round; flex: none; }
kbd { font: 11px/1 ui-monospace, Consolas, monospace; color: inherit; opacity: .75; border: 1px solid currentColor;
  border-radius: 4px; padding: 2px 4px; }
label { display: inline-flex; align-items: center; gap: 6px; color: var(--dim); white-space: nowrap; }
input[type=range] { width: 96px; height: 20px; margin: 0; accent-color: var(--accent); }
output { color: var(--ink); min-width: 4ch; font-variant-numeric: tabular-nums; }

.tools { display: flex; gap: 6px; padding-top: 10px; }
.tools > * { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 4px; padding: 4px;
  background: var(--soft); border: 1px solid var(--line); border-radius: 12px; }
.tools > :first-child { flex: 6; } .tools > .sight { flex: 2; }
.tools > .sight:has([data-do=gaze]:not([hidden])) { flex: 3; }
.tools button { flex-direction: column; gap: 2px; height: 46px; padding: 0; border-color: transparent; font-size: 11.5px;
  background: transparent; color: var(--dim); }
.tools button[aria-pressed=true] { background: var(--card); border-color: var(--line); color: var(--ink);
  box-shadow: 0 1px 3px var(--shade); }
.tools button[aria-pressed=true] svg { color: var(--accent); }
.tools [data-tool=live][aria-pressed=true] svg { color: var(--live); }
.tools [data-tool=pin][aria-pressed=true] svg { color: var(--pin); }
.tools [data-tool=path][aria-pressed=true] svg { color: var(--path); }
.stage[data-theme=light] .tools [data-tool=live][aria-pressed=true] svg { color: #12995f; }
.options { min-height: 48px; padding: 10px 4px 0; color: var(--dim); }
.options > div { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 12px; min-height: 36px; }
.worded { display: inline-flex; align-items: center; gap: 8px; white-space: nowrap; }
.pick { display: inline-flex; border: 1px solid var(--line); border-radius: 9px; overflow: hidden; }
.pick button { border: 0; border-radius: 0; background: transparent; color: var(--dim); padding: 0 10px; height: 32px; }
.pick button[aria-pressed=true] { background: var(--on); color: var(--ink); }
.pick button:focus-visible { outline-offset: -2px; }
.options > .pads { gap: 6px 10px; } .pads .pick button { width: 30px; padding: 0; font-size: 15px; }
.pads span { display: inline-flex; align-items: center; gap: 6px; }
.bar { display: flex; flex-wrap: wrap; gap: 6px; padding-top: 12px; align-items: center; }
.gap { flex: 1; }
[inert] { opacity: .45; }
.models { flex-wrap: wrap; color: var(--dim); } .models label { padding-left: 4px; }
.models select { flex: 1; min-width: 0; max-width: 22em; } .models .told { flex-basis: 100%; padding: 2px 4px 0; }
.models .told.bad { color: var(--bad); } progress { width: 100%; height: 6px; accent-color: var(--accent); }
.sights figure { margin: 12px 0 0; padding: 10px; border: 1px solid var(--line); border-radius: 12px; background: var(--soft); }
.sights figcaption { color: var(--dim); padding-top: 8px; }
.map .tiles { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 6px; }
.map .tiles i { display: block; border-radius: 6px; background: #05070a; image-rendering: pixelated; }
.gaze { --sink: var(--path); --window: #8b95a8; --now: var(--live); }
.legend { display: flex; gap: 6px 16px; padding-bottom: 8px; font-variant-numeric: tabular-nums; }
.legend span { display: inline-flex; align-items: center; gap: 6px; white-space: nowrap; }
.legend span::before { content: ""; width: 10px; height: 10px; border-radius: 3px; background: var(--part); }
.gaze .sink { --part: var(--sink); } .gaze .window { --part: var(--window); } .gaze .now { --part: var(--now); }
.both { display: flex; gap: 12px; }
.spot { position: relative; flex: none; width: 96px; border-radius: 6px; overflow: hidden; background: #05070a; }
.spot canvas { position: static; height: auto; filter: brightness(.55); }
.spot i { position: absolute; inset: 0; background-size: 100% 100%; image-rendering: pixelated; }
.bars { flex: 1; display: grid; gap: 4px; grid-template-rows: 20px; grid-auto-rows: 5px; align-content: start; }
.bars div { display: flex; border-radius: 2px; overflow: hidden; opacity: .75; }
.bars div:first-child { border-radius: 5px; margin-bottom: 2px; background: var(--on); opacity: 1; }
.bars i { flex: 0 1 0; background: var(--part); transition: flex-grow .25s; }

@media (hover: hover) {
  button:hover:not(:disabled) { background: var(--on); } button.main:hover:not(:disabled) { background: #5be7ac; }
  .tools button:hover:not(:disabled) { color: var(--ink); }
}
@container (max-width: 520px) {
  .stage { padding: 8px; border-radius: 12px; }
  .head { flex-direction: column; align-items: stretch; gap: 4px; height: 42px; }
  .hud { justify-content: space-between; gap: 8px; font-size: 12px; padding: 0 4px; } .work { display: none; }
  kbd { display: none; } button, select { height: 40px; padding: 0 9px; } button.square { width: 40px; }
  .bar { gap: 5px; } .files .gap { flex-basis: 100%; } .files [data-do=help] { margin-left: auto; }
  .tools { gap: 4px; } .tools button { height: 52px; font-size: 10.5px; }
  .tools > * { padding: 3px; gap: 2px; flex: auto !important; grid-auto-columns: minmax(31px, auto); }
  .pick button { height: 38px; } .pads .pick button { width: 38px; }
  .help { padding: 10px; gap: 2px 10px; font-size: 11.5px; } input[type=range] { height: 32px; }
  .options > div { gap: 8px 10px; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
`;

const icon = (inside) => `<svg viewBox="0 0 18 18" aria-hidden="true">${inside}</svg>`;

// name: what it is called, what it does, its picture; in the order of the keys 1 to 6
const TOOLS = {
  live: ["Handle", "Handle: put a point on a thing and drag it",
    '<circle cx="6.5" cy="11.5" r="3" fill="currentColor"/><path d="M9.5 8.5 15 3M11 3h4v4"/>'],
  pin: ["Pin", "Pin: hold a spot where it is; on a pin, free it",
    '<path d="M9 16s5-5.1 5-9A5 5 0 0 0 4 7c0 3.9 5 9 5 9z"/><circle cx="9" cy="7" r="1.7" fill="currentColor"/>'],
  path: ["Path", "Path: press and draw, or click nodes and finish with Enter or a double click",
    '<path d="M3.5 14.500C3 7 15 11 14.5 3.5"/><circle cx="3.5" cy="14.5" r="1.6" fill="currentColor"/>'
    + '<circle cx="14.5" cy="3.5" r="1.6" fill="currentColor"/>'],
  grid: ["Grid", "Grid: drag out a box, and points fill it", [4, 9, 14].flatMap((x) => [4, 9, 14].map((y) =>
    `<circle cx="${x}" cy="${y}" r="1.3" fill="currentColor" stroke="none"/>`)).join("")],
  select: ["Select", "Select: drag a box around points, then drag any of them",
    '<path stroke-dasharray="2.6 2.3" d="M3 3h12v12H3z"/>'],
  camera: ["Camera", "Camera: drag the ground to pan, wheel or pinch to zoom",
    '<rect x="2" y="5" width="10" height="9" rx="2"/><path d="m12 8.5 4-2.200v6.400l-4-2.2"/>'],
};

const KEYS = [["Press and drag", "what is under the pointer follows it"], ["Shift click", "pin a spot, or free it"],
  ["1 to 6", "handle, pin, path, grid, select, camera"],
  ["Enter", "start, end; finish a path"], ["Space", "pause, go on"],
  ["W A S D, + −", "camera: pan, zoom"], ["Q E, Z X, R F", "camera: roll, orbit, dolly in and out"],
  ["Ctrl Z, Ctrl Y", "take the last deed back, do it again"],
  ["N", "fresh anchor: hold the video to how it looks now"], ["H", "hold still what no hand moves, or free it"],
  ["End", "a kept session: to its end, as fast as can be"],
  ["M, G", "what the model sees, where it looks"],
  ["Arrows", "move what is chosen, or else the cross (Shift: further)"], ["I", "use the tool where the cross is"],
  ["Select, on a path", "drag its nodes, Delete takes one out, a double click on the line adds one"],
  ["] and [", "choose the next node of a path, the one before: arrows move it, I adds one behind it, Delete takes it out"],
  [". and ,", "choose the next point, the one before"], ["Ctrl A", "choose all points"],
  ["Delete, Backspace", "remove what is chosen"], ["Esc", "choose none, leave a path, close this"], ["?", "this list"]];

const EXPORTS = { mp4: "mp4", webp: "webp", gif: "gif", png: "still", npz: "tracks (npz)", tracks: "tracks (json)",
  session: "session" };

const WORDS = { empty: "no picture yet", opening: "getting ready", ready: "ready", playing: "playing", paused: "paused",
  ended: "ended", failed: "stopped", lost: "link lost", queue: "waiting", connecting: "connecting" };

// Where attention can go: see gaze.py.
const PARTS = ["sink", "window", "now"];

function barOf(parts) {
  const bar = document.createElement("div");
  bar.append(...parts.map((className) => Object.assign(document.createElement("i"), { className })));
  return bar;
}

// What the picture says while nothing happens on it.
const HINTS = { live: "Press on anything and drag it", pin: "Click what should stay where it is",
  path: "Press and draw a way, or click its nodes", grid: "Drag out a box: points fill it",
  select: "Drag a box around points", camera: "Drag to pan, wheel or pinch to zoom" };

// key: [part of a move, its sign]; see flight.py
const FLY_KEYS = { w: ["down", -1], s: ["down", 1], a: ["right", -1], d: ["right", 1], "+": ["zoom", 1], "=": ["zoom", 1],
  "-": ["zoom", -1], q: ["roll", -1], e: ["roll", 1], z: ["orbit", -1], x: ["orbit", 1], r: ["dolly", 1], f: ["dolly", -1] };

function flyPad(name, buttons) {
  const one = ([sign, part, amount, what]) =>
    `<button data-fly="${part}" data-sign="${amount}" aria-label="${what}" title="${what}">${sign}</button>`;
  return `<span>${name}<span class="pick" role="group" aria-label="${name}">${buttons.map(one).join("")}</span></span>`;
}

function pick(label, name, choices) {
  const one = ([value, text, title]) =>
    `<button data-${name}="${value}" aria-pressed="false" title="${title}">${text}</button>`;
  return `<span class="pick" role="group" aria-label="${label}">${choices.map(one).join("")}</span>`;
}

const OPTIONS = {
  live: `<span class="worded grips">It takes ${pick("What a point takes hold of", "grip", [
    ["yes", "the thing", "The whole thing under it goes along; two points turn it"],
    ["no", "its spot", "What is near to it goes along"]])}</span>
    <span class="worded">Released, it ${pick("When a point is released", "keep", [
    ["holds", "holds", "A released point holds its place"],
    ["glides", "glides", "A released point goes on as the hand did, and comes to rest"],
    ["goes", "lets go", "A released point lets go of the thing"]])}</span>`,
  pin: "<span>A click pins a spot; on a pin it frees it, on a handle it pins it.</span>",
  path: `<span title="Begun on a point, it is for that point">Press and draw: it plays as your hand went. Or click its
    nodes.</span>`,
  draft: `<span class="counted"></span><button data-do="finish">Finish <kbd>Enter</kbd></button>
    <button data-do="unlay">One back</button><button data-do="cancel">Cancel <kbd>Esc</kbd></button>`,
  way: `${pick("How the path is played", "loop", [["once", "once", "To its end, and stay"],
    ["loop", "loop", "From its end to its start again"], ["swing", "swing", "There and back"]])}
    <label>Speed <input type="range" class="speed" min="-2" max="2" step="0.25" value="0" aria-label="Speed of the path">
      <output class="times">1×</output></label>
    <button data-do="smooth" title="Round its corners; press again for more">Smooth</button>
    <button data-do="even" title="The same way at one even speed">Even</button>`,
  grid: `${pick("What the grid is made of", "kind", [["live", "handles", "Points you drag"],
    ["pin", "pins", "Points that stay"]])}
    <label>Spacing <input type="range" class="spacing" min="4" max="40" step="1" value="14" aria-label="Spacing of the grid">
      <output class="percent">14 %</output></label>`,
  select: "<span>Drag a box around points, then drag any of them. Shift adds.</span>",
  group: `<span class="many"></span><button data-do="pinAll">Pin</button><button data-do="freeAll">Free</button>
    <button data-do="remove">Delete</button>`,
  camera: flyPad("Zoom", [["−", "zoom", -1, "Zoom out"], ["+", "zoom", 1, "Zoom in"]])
    + flyPad("Roll", [["↺", "roll", -1, "Roll left"], ["↻", "roll", 1, "Roll right"]])
    + flyPad("Orbit", [["◂", "orbit", -1, "Orbit left"], ["▸", "orbit", 1, "Orbit right"]])
    + flyPad("Dolly", [["▾", "dolly", -1, "Dolly out"], ["▴", "dolly", 1, "Dolly in"]]),
};

const STAGE_HTML = `
<style>${STAGE_CSS}</style>
<div class="stage" tabindex="0" role="application" aria-roledescription="live canvas" data-theme="dark"
     aria-label="Live canvas. Click to add a point, drag it while the video plays. Enter starts and ends, Space pauses,
       Control Z takes back. Arrows move a cross or what is chosen, I uses the tool there. Question mark lists all keys.">
  <div class="head">
    <div class="who"><span class="dot"></span><span class="state" role="status">connecting</span></div>
    <div class="hud" aria-hidden="true"><span><b class="fps">–</b> fps</span>
      <span title="from moving the pointer to drawing a frame that knows of it: the median of the latest 300 moves, and what 95 % of them do not exceed"><b
        class="ms">–</b> ms, p95 <b class="p95">–</b></span>
      <span class="made" title="no chunk has been made yet">chunk <b class="chunk">–</b> <span class="memory"></span> <span
        class="work"><b class="took">–</b> ms<span class="fewer"></span></span></span>
      <span title="JPEG quality: falls when the link is thin">q<b class="q">–</b></span>
      <span class="way" title="how frames come: ws, a WebSocket; http, where a proxy lets none through; events, where it knows Gradio alone"></span>
    </div>
  </div>
  <div class="screen"><canvas class="video"></canvas><canvas class="top"></canvas>
    <div class="veil on" role="status">Connecting…</div><div class="hint" role="status" aria-live="polite"></div>
    <dl class="help" aria-label="Keys">${KEYS.map(([keys, what]) => `<dt>${keys}</dt><dd>${what}</dd>`).join("")}</dl></div>
  <div class="bar">
    <button class="main" data-do="toggle" title="Enter"><span>Start</span> <kbd>Enter</kbd></button>
    <button data-do="hold" title="Space"><span>Pause</span> <kbd>Space</kbd></button>
    <button data-do="reset" title="Back to the picture">Reset</button>
    <button data-do="undo" class="square" title="Undo (Ctrl Z)" aria-label="Undo">${
      icon('<path d="M6 4 3 7l3 3M3 7h7a4 4 0 0 1 0 8H7"/>')}</button>
    <button data-do="redo" class="square" title="Redo (Ctrl Y)" aria-label="Redo">${
      icon('<path d="m12 4 3 3-3 3M15 7H8a4 4 0 0 0 0 8h3"/>')}</button>
    <button data-do="skip" title="The kept session, as fast as it can be made (End)" hidden>To its end</button>
    <button data-do="anchor" title="N: hold the video to how it looks now, not to how it began">Anchor</button>
  </div>
  <div class="tools" role="toolbar" aria-label="Tools">
    <div>${Object.entries(TOOLS).map(([tool, [name, what, drawing]], i) =>
    `<button data-tool="${tool}" aria-pressed="false" title="${what} (${i + 1})">${icon(drawing)}${name}</button>`
    ).join("")}</div>
    <div class="sight"><button data-do="rest" aria-pressed="false" aria-label="Still: what no hand moves stays"
      title="What no hand moves stays as it is; else the model is free to move it (H)">${
      icon('<rect x="3.5" y="8" width="11" height="7.5" rx="2"/><path d="M6 8V5.500a3 3 0 0 1 6 0V8"/>')}Still</button><button data-do="look" aria-pressed="false" aria-label="Map: what the model sees"
      title="What the model sees: the motion map of each chunk (M)">${
      icon('<path d="M1.5 9S4 4 9 4s7.5 5 7.5 5-2.5 5-7.5 5S1.5 9 1.5 9z"/><circle cx="9" cy="9" r="2"/>')}Map</button><button data-do="gaze" aria-pressed="false"
      aria-label="Gaze: where the model looks" title="Where the model looks: its attention to sink, window and chunk (G)">${
      icon('<path d="M2.500 4.500h4M9 4.500h6.500M2.500 9h7M12 9h3.500M2.500 13.500h2M7 13.500h8.500"/>')}Gaze</button></div>
  </div>
  <div class="options" role="group" aria-label="Settings">${Object.entries(OPTIONS).map(([name, inside]) =>
    `<div data-options="${name}"${name === "camera" ? ' class="pads"' : ""} hidden>${inside}</div>`).join("")}</div>
  <div class="sights">
    <figure class="map" hidden><div class="tiles"></div><figcaption></figcaption></figure>
    <figure class="gaze" hidden>
      <div class="legend" aria-hidden="true">${PARTS.map((part) => `<span class="${part}"></span>`).join("")}</div>
      <div class="both"><div class="bars" role="img"></div>
        <div class="spot" role="img" aria-label="Where in the sink the chosen point looks" hidden><canvas
          class="given"></canvas><i></i></div></div>
      <figcaption></figcaption></figure>
  </div>
  <div class="bar files">
    <button data-do="file" title="Everything shown since Start">Export</button>
    <select class="what" aria-label="What to export">${Object.entries(EXPORTS).map(([what, name]) =>
      `<option value="${what}">${name}</option>`).join("")}</select>
    <label title="Says in a corner of the picture that it was generated"><input type="checkbox" class="tag"> with a
      mark</label>
    <span class="gap"></span>
    <button data-do="last" hidden>Last session</button>
    <button data-do="bring" title="Play a saved session again, and go on where it ended">Open session</button>
    <button data-do="help" class="square" title="All keys" aria-label="Keys" aria-expanded="false">?</button>
  </div>
  <div class="bar models" role="group" aria-label="Model" hidden>
    <label>Model <select class="model" aria-label="Model"></select></label>
    <button data-do="change" title="It is loaded while this one goes on">Load</button>
    <span class="told" role="status"></span><progress max="1" hidden></progress>
  </div>
</div>`;

// Light or dark, as the page around it is: Gradio says it by a class, JupyterLab by an attribute, others by the system.
function followTheme(box, system) {
  const dark = matchMedia("(prefers-color-scheme: dark)"), body = document.body;
  const apply = () => {
    const notebook = body.dataset.jpThemeLight;
    const isDark = notebook ? notebook === "false" : body.classList.contains("dark") || (system && dark.matches);
    box.dataset.theme = isDark ? "dark" : "light";
  };
  const watcher = new MutationObserver(apply);
  watcher.observe(body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  dark.addEventListener("change", apply);
  apply();
  return () => { watcher.disconnect(); dark.removeEventListener("change", apply); };
}
