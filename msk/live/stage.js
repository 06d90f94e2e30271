// The stage: a canvas that plays a stream and sends back what pointers do. Plain script, no build, nothing from outside.
//
//     const stage = mountStage(element, socketHost({url, token}))        // a page
//     const stage = mountStage(element, modelHost(model))                // a notebook (anywidget)
//
// What goes over the line is described in protocol.py. The overlay is drawn here, at the screen's own rate; frames are
// shown when the server's clock says so. For tests and other scripts, `element.mskStage` is the stage.

const STAGE_CSS = `
:host { display: block; --live: #3ddc97; --pin: #ff5d5d; --path: #5aa9ff; --ink: #e8ecf3; --dim: #8a94a6; --card: #12151c; --line: #262c38; --accent: #7aa2ff; }
* { box-sizing: border-box; }
.stage { font: 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 16px; padding: 12px; max-width: 640px; margin: 0 auto; outline: none;
  box-shadow: 0 12px 40px rgb(0 0 0 / .25); }
.stage:focus-visible { border-color: var(--accent); }
.head { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 4px 14px; padding: 0 4px 10px; font-variant-numeric: tabular-nums; }
.who { display: flex; align-items: center; gap: 8px; font-weight: 600; }
.dot { width: 9px; height: 9px; border-radius: 50%; background: var(--dim); transition: background .2s; }
.dot.playing { background: var(--live); box-shadow: 0 0 0 4px rgb(61 220 151 / .18); }
.dot.paused { background: #ffc857; } .dot.failed, .dot.lost { background: var(--pin); }
.hud { display: flex; gap: 14px; color: var(--dim); }
.hud b { color: var(--ink); font-weight: 600; }
.screen { position: relative; width: 100%; max-height: 74vh; margin: 0 auto; border-radius: 10px; overflow: hidden; background: #05070a; touch-action: none; }
canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.top { cursor: crosshair; } .top.over { cursor: grab; } .top.dragging { cursor: grabbing; }
.veil { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; text-align: center; padding: 24px;
  background: rgb(5 7 10 / .74); font-size: 15px; pointer-events: none; opacity: 0; transition: opacity .2s; }
.veil.on { opacity: 1; }
.hint { position: absolute; left: 50%; bottom: 14px; transform: translateX(-50%); padding: 7px 14px; border-radius: 99px; max-width: calc(100% - 24px);
  background: rgb(5 7 10 / .72); color: var(--ink); pointer-events: none; opacity: 0; transition: opacity .25s; text-align: center; }
.hint.on { opacity: 1; } .hint.error { background: rgb(122 24 32 / .92); }
.bar { display: flex; flex-wrap: wrap; gap: 6px; padding-top: 12px; align-items: center; }
.gap { flex: 1; }
.tools { padding-top: 8px; column-gap: 8px; color: var(--dim); } .tools .pick + .label { margin-left: 10px; }
button { font: inherit; color: var(--ink); background: #1c212c; border: 1px solid var(--line); border-radius: 9px; padding: 7px 12px; cursor: pointer;
  display: inline-flex; align-items: center; gap: 7px; white-space: nowrap; }
button:hover:not(:disabled) { background: #252c3a; } button:disabled { opacity: .4; cursor: default; }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
button.main { background: var(--live); border-color: var(--live); color: #06120c; font-weight: 650; }
button.main:hover:not(:disabled) { background: #5be7ac; }
.pick { display: inline-flex; border: 1px solid var(--line); border-radius: 9px; overflow: hidden; }
.pick button { border: 0; border-radius: 0; background: transparent; color: var(--dim); padding: 7px 10px; }
.pick button[aria-pressed=true] { background: #252c3a; color: var(--ink); }
.pip { width: 9px; height: 9px; border-radius: 50%; display: inline-block; }
kbd { font: 11px/1 ui-monospace, Consolas, monospace; color: inherit; opacity: .6; border: 1px solid currentColor; border-radius: 4px; padding: 2px 4px; }
select { font: inherit; color: var(--ink); background: #1c212c; border: 1px solid var(--line); border-radius: 9px; padding: 7px 6px; }
label { display: inline-flex; align-items: center; gap: 5px; color: var(--dim); }
.help { position: absolute; inset: 0; margin: 0; padding: 20px; display: none; grid-template-columns: max-content 1fr; gap: 7px 16px; align-content: center;
  background: rgb(5 7 10 / .9); overflow: auto; } .help.on { display: grid; }
.help dt { text-align: right; font-weight: 600; } .help dd { margin: 0; color: var(--dim); } [hidden] { display: none !important; }
@media (max-width: 480px) { .stage { padding: 8px; border-radius: 12px; } kbd { display: none; } button { padding: 8px 10px; } .hud { gap: 8px; flex-basis: 100%; font-size: 12px; white-space: nowrap; overflow: hidden; } .tools .pick + .label { margin-left: 0; } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
`;

const KEYS = [["Press and drag", "what is under the pointer follows it"], ["Shift click", "pin a spot, or free it"], ["Enter", "start, end"], ["Space", "pause, go on"],
  ["Ctrl Z", "take the last deed back"], ["Ctrl Y, Ctrl Shift Z", "do it again"], ["A", "fresh anchor: hold the video to how it looks now"],
  ["Arrows", "move the chosen point (with Shift, further)"], ["Delete, Backspace", "remove it"], ["Esc", "choose none, close this"], ["?", "this list"]];
const EXPORTS = { mp4: "mp4", webp: "webp", gif: "gif", png: "still", npz: "tracks (npz)", tracks: "tracks (json)", session: "session" };

const STAGE_HTML = `
<style>${STAGE_CSS}</style>
<div class="stage" tabindex="0" role="application" aria-roledescription="live canvas"
     aria-label="Live canvas. Click to add a point, drag it while the video plays. Enter starts and ends, Space pauses, Control Z takes back, Control Y does it again, A makes a fresh anchor, Delete removes the chosen point, arrows move it, question mark lists all keys.">
  <div class="head">
    <div class="who"><span class="dot"></span><span class="state">connecting</span></div>
    <div class="hud" aria-hidden="true"><span><b class="fps">–</b> fps</span><span title="from moving the pointer to a frame that knows of it (median; of 95 in a hundred at most)"><b class="ms">–</b> ms, p95 <b class="p95">–</b></span>
      <span>chunk <b class="chunk">–</b></span><span title="JPEG quality: falls when the link is thin">q<b class="q">–</b></span>
      <span class="way" title="how frames come: ws, a WebSocket; http, where a proxy lets none through"></span></div>
  </div>
  <div class="screen"><canvas class="video"></canvas><canvas class="top"></canvas>
    <div class="veil on" role="status">Connecting…</div><div class="hint" role="status" aria-live="polite"></div>
    <dl class="help" aria-label="Keys">${KEYS.map(([keys, what]) => `<dt>${keys}</dt><dd>${what}</dd>`).join("")}</dl></div>
  <div class="bar">
    <button class="main" data-do="toggle" title="Enter"><span>Start</span> <kbd>Enter</kbd></button>
    <button data-do="hold" title="Space"><span>Pause</span> <kbd>Space</kbd></button>
    <button data-do="reset" title="Back to the picture">Reset</button>
    <button data-do="undo" title="Ctrl Z">Undo</button>
    <button data-do="redo" title="Ctrl Y">Redo</button>
    <button data-do="anchor" title="A: hold the video to how it looks now, not to how it began">Anchor</button>
  </div>
  <div class="bar">
    <button data-do="file" title="Everything shown since Start">Export <span>mp4</span></button>
    <select class="what" aria-label="What to export">${Object.entries(EXPORTS).map(([what, name]) => `<option value="${what}">${name}</option>`).join("")}</select>
    <label title="Says in a corner of the picture that it was generated"><input type="checkbox" class="tag"> with a mark</label>
    <span class="gap"></span>
    <button data-do="last" hidden>Last session</button>
    <button data-do="bring" title="Play a saved session again, and go on where it ended">Open session</button>
    <button data-do="help" title="All keys" aria-label="Keys">?</button>
  </div>
  <div class="bar tools">
    <span class="label">A click adds</span>
    <span class="pick" role="group" aria-label="What a click adds">
      <button data-tool="live" aria-pressed="true" title="Points you drag"><i class="pip" style="background:var(--live)"></i>a handle</button>
      <button data-tool="pin" aria-pressed="false" title="Points that stay (or Shift-click)"><i class="pip" style="background:var(--pin)"></i>a pin</button>
    </span>
    <span class="label">Released, it</span>
    <span class="pick" role="group" aria-label="When a point is released">
      <button data-keep="yes" aria-pressed="true" title="A released point holds its place">holds</button>
      <button data-keep="no" aria-pressed="false" title="A released point lets go of the thing">lets go</button>
    </span>
  </div>
</div>`;

const WORDS = { empty: "no picture yet", opening: "getting ready", ready: "ready", playing: "playing", paused: "paused", ended: "ended",
  failed: "stopped", lost: "link lost", queue: "waiting", connecting: "connecting" };

function readFrame(buffer) {
  const view = new DataView(buffer), count = view.getUint8(2), marks = [];
  let at = 40;
  for (let i = 0; i < count; i++, at += 12)
    marks.push({ id: view.getUint16(at, true), kind: ["live", "pin", "path", "camera"][view.getUint8(at + 2)], x: view.getFloat32(at + 4, true), y: view.getFloat32(at + 8, true) });
  return { quality: view.getUint8(1), still: (view.getUint8(3) & 1) === 1, seq: view.getUint32(4, true), chunk: view.getUint32(8, true),
    index: view.getUint32(12, true), pts: view.getFloat64(16, true), sent: view.getFloat64(24, true), echo: view.getFloat64(32, true),
    marks, blob: new Blob([new Uint8Array(buffer, at)], { type: "image/jpeg" }), bitmap: null };
}

function packSamples(samples) {
  const view = new DataView(new ArrayBuffer(2 + 18 * samples.length));
  view.setUint8(0, 1); view.setUint8(1, samples.length);
  samples.forEach((s, i) => {
    const at = 2 + 18 * i;
    view.setFloat64(at, s.t, true); view.setUint16(at + 8, s.id, true); view.setFloat32(at + 10, s.x, true); view.setFloat32(at + 14, s.y, true);
  });
  return view.buffer;
}

function packAck(seq) {
  const view = new DataView(new ArrayBuffer(5));
  view.setUint8(0, 2); view.setUint32(1, seq, true);
  return view.buffer;
}

const median = (list) => list.length ? [...list].sort((a, b) => a - b)[list.length >> 1] : NaN;
const share95 = (list) => list.length ? [...list].sort((a, b) => a - b)[Math.min(list.length - 1, Math.floor(0.95 * list.length))] : NaN;
const clamp = (v) => Math.min(Math.max(v, 0), 1);

// -- the connection: two ways to the server, tried in this order -------------------------------------------------------
// A line carries the messages of protocol.py: `hear(data)` for each that comes, `gone(why)` once when it ends.

function webSocketLine({ at, token, session, hear, gone }) {
  const where = at("ws");
  where.protocol = where.protocol.replace("http", "ws");
  if (session) where.searchParams.set("resume", session);
  const socket = new WebSocket(where, ["msk.v2", "token." + token]);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => hear(data);
  socket.onclose = () => gone("");
  return {
    name: "ws",
    send(data) { return socket.readyState === WebSocket.OPEN && (socket.send(data), true); },
    close(code) { socket.close(code); gone(""); },
  };
}

// Where a proxy lets no WebSocket through (post.py): one long answer down, posts up, one at a time with all that waits.
function postLine({ at, token, session, hear, gone }) {
  const where = at("stream"), stop = new AbortController(), headers = { "x-msk-token": token };
  let up = [], key = "", busy = false, over = false;
  if (session) where.searchParams.set("resume", session);
  const end = (why) => { if (!over) { over = true; stop.abort(); gone(why); } };
  const send = (body, keepalive = false) => fetch(at("in/" + key), { method: "POST", headers, body, keepalive });
  async function post() {
    if (busy || over || !key || !up.length) return;
    busy = true;
    const parts = [];
    for (let size = 0; up.length && size < 65536 && parts.length < 512; ) {             // what the server takes in one post
      const data = up.shift(), binary = typeof data !== "string", raw = binary ? new Uint8Array(data) : new TextEncoder().encode(data);
      const head = new DataView(new ArrayBuffer(5));
      head.setUint8(0, binary ? 1 : 0); head.setUint32(1, raw.length, true);
      parts.push(head.buffer, raw);
      size += 5 + raw.length;
    }
    const answer = await send(new Blob(parts)).catch(() => null);
    if (!answer || answer.status === 404 || answer.status === 403) return end("");
    setTimeout(() => { busy = false; post(); }, 30);
  }
  async function listen() {
    const answer = await fetch(where, { method: "POST", headers, signal: stop.signal });
    if (!answer.ok) return end((await answer.text()).slice(0, 200));
    key = answer.headers.get("x-msk-line");
    post();
    let held = new Uint8Array(0);
    for (const reader = answer.body.getReader(); ;) {
      const { value, done } = await reader.read();
      if (done || over) return end("");
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held); joined.set(value, held.length); held = joined;
      for (let size; held.length >= 5 && held.length >= 5 + (size = new DataView(held.buffer, held.byteOffset).getUint32(1, true)); held = held.subarray(5 + size)) {
        const data = held.slice(5, 5 + size);
        try { hear(held[0] ? data.buffer : new TextDecoder().decode(data)); } catch (error) { reportError(error); }
      }
    }
  }
  listen().catch(() => end(""));
  return {
    name: "http",
    send(data) { if (!over && up.length < 1000) { up.push(data); post(); } return !over; },
    close(code) { if (code === 1000 && key) send("", true).catch(() => {}); end(""); },
  };
}

// A line that comes back by itself and asks for the session it had. A way on which nothing is heard gives room to the other.
function socketHost({ url, token }) {
  const ways = [webSocketLine, postLine], at = (end) => new URL(url.replace(/ws$/, end), document.baseURI);
  let line = null, way = 0, session = "", tries = 0, closed = false, everGreeted = false;
  return {
    everywhere: true,                       // keys work on the whole page
    get way() { return line ? line.name : ""; },
    connect(on) {
      const dial = () => {
        if (closed) return;
        let heard = false, over = false;
        const beat = setInterval(() => this.send({ type: "ping", t: performance.now() }), 5000), silent = setTimeout(() => mine.close(4001), 5000 * 2 ** Math.min(tries, 3));
        const hear = (data) => {
          if (over) return;
          heard = true;
          clearTimeout(silent);
          if (typeof data !== "string") return on.frame(data);
          const word = JSON.parse(data);
          if (word.type === "hello") { session = word.session; tries = 0; everGreeted = true; }
          on.word(word);
        };
        const gone = (why) => {
          if (over) return;
          over = true;
          clearInterval(beat); clearTimeout(silent);
          if (closed) return;
          if (!heard) way = (way + 1) % ways.length;
          if (!heard && way > 0) return dial();
          tries += 1;
          on.lost(why || ((tries > 3 && !everGreeted) || tries > 8 ? "The stage cannot be reached: reload the page." : "The link is lost: trying again…"));
          setTimeout(dial, Math.min(4000, 250 * 2 ** tries));
        };
        const mine = line = ways[way]({ at, token, session, hear, gone });
      };
      addEventListener("pagehide", () => this.close());
      addEventListener("pageshow", (event) => { if (event.persisted && closed) { closed = false; session = ""; dial(); } });
      dial();
    },
    send(data) { return !!line && line.send(data instanceof ArrayBuffer || typeof data === "string" ? data : JSON.stringify(data)); },
    async bring(file) {                     // a session file; what is wrong with it, or ""
      const answer = await fetch(at("session/" + encodeURIComponent(session)), { method: "POST", body: file, headers: { "x-msk-token": token } });
      return answer.ok ? "" : (await answer.text()).slice(0, 300);
    },
    drop() { line.close(4000); },           // as if the link had failed
    close() { closed = true; line && line.close(1000); },
    save(url, name) {
      const link = document.createElement("a");
      link.href = new URL(url, document.baseURI); link.download = name;
      document.body.append(link); link.click(); link.remove();
    },
  };
}

// A notebook's model: the page asks (`pull`), the answer carries what has been made since. No push, so nothing can pile up.
function modelHost(model) {
  let up = [], acks = 0, timer = null, waiting = 0;
  return {
    everywhere: false,
    connect(on) {
      const hear = (content, buffers) => {
        if (content.type !== "pulled") return;
        waiting = 0;
        content.words.forEach(on.word);
        buffers.forEach((b) => on.frame(b instanceof ArrayBuffer ? b : b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength)));
      };
      const pull = () => {
        if (waiting && performance.now() - waiting < 3000) return;
        waiting = performance.now();
        const words = up.filter((m) => !(m instanceof ArrayBuffer)), buffers = up.filter((m) => m instanceof ArrayBuffer);
        const order = up.map((m) => m instanceof ArrayBuffer ? 1 : 0);
        up = [];
        model.send({ type: "pull", words, order }, undefined, buffers);
      };
      model.on("msg:custom", hear);
      timer = setInterval(pull, 40);
      this.stop = () => { clearInterval(timer); model.off("msg:custom", hear); };
    },
    send(data) { if (up.length < 200) up.push(data); return true; },
    async bring(file) { model.send({ type: "session" }, undefined, [await file.arrayBuffer()]); return ""; },
    drop() {},
    close() { this.stop && this.stop(); },
    save(url, name) {
      const link = document.createElement("a");
      link.href = url; link.download = name; link.click();
    },
  };
}

function mountStage(el, host) {
  const root = el.shadowRoot || el.attachShadow({ mode: "open" });
  root.innerHTML = STAGE_HTML;
  const $ = (selector) => root.querySelector(selector);
  const box = $(".stage"), screen = $(".screen"), video = $(".video"), top = $(".top"), veil = $(".veil"), hint = $(".hint");
  const pen = video.getContext("2d"), ink = top.getContext("2d");

  let hello = { width: 1, height: 1, fps: 24, max_points: 144 }, state = "connecting", greeted = false;
  let tool = "live", keep = true, chosen = null, over = null, nextId = 1, offset = Infinity, lastEcho = -Infinity, undoable = 0, redoable = 0, script = 0, prompt = null, stale = true;
  let current = null, queue = [], samples = [], pending = [], hintUntil = 0, hintText = "", hintBad = false;
  const remembered = { get take() { try { return localStorage.getItem("msk-take"); } catch { return null; } },
    set take(name) { try { localStorage.setItem("msk-take", name); } catch { } } };
  const last = host.everywhere ? remembered.take : null;     // the take that this browser made before
  const points = new Map();           // id -> {kind, x, y, shown, trail, born, leaving}: x, y where it should be, shown where it is
  const drags = new Map();            // pointerId -> {id, dx, dy, moved, fresh, at}
  const kept = [], draws = [], latencies = [], errors = [];
  const stats = { received: 0, drawn: 0, skipped: 0, errors };

  // -- the line ------------------------------------------------------------------------------------------------------
  const say = (message) => host.send(message);

  function note(text, bad = false, seconds = 5) {
    hintText = text; hintBad = bad; hintUntil = performance.now() + 1000 * seconds;
    stale = true;
    if (bad) errors.push(text);
  }

  function setState(next) {
    state = next;
    el.dataset.state = next;
    el.dispatchEvent(new CustomEvent("msk-state", { detail: next, bubbles: true }));
    refresh();
  }

  function word(m) {
    if (m.type === "hello") {
      hello = m; greeted = true; offset = Infinity; lastEcho = -Infinity; queue = []; pending = [];
      screen.style.aspectRatio = `${m.width} / ${m.height}`;
      screen.style.maxWidth = `calc(74vh * ${m.width / m.height})`;
      veil.classList.remove("on");
      if (last && m.keeps) say({ type: "recall", take: last });
      resize();
    } else if (m.type === "state") {
      const listed = new Set(m.points.map((p) => p.id)), held = new Set([...drags.values()].map((d) => d.id));
      for (const [id, p] of points) if (!listed.has(id) && performance.now() - p.born > 1500) points.delete(id);
      for (const p of m.points) {
        const mine = points.get(p.id);
        nextId = Math.max(nextId, p.id + 1);
        if (!mine) points.set(p.id, { kind: p.kind, x: p.x, y: p.y, shown: null, trail: [], born: -1e9, leaving: p.leaving });
        else {
          mine.kind = p.kind; mine.leaving = p.leaving; mine.born = -1e9;
          if (!held.has(p.id)) { mine.x = p.x; mine.y = p.y; }
        }
      }
      if (chosen !== null && !points.has(chosen)) chosen = null;
      undoable = m.undo; redoable = m.redo; script = m.script;
      if (m.take && host.everywhere) remembered.take = m.take;
      if (m.prompt !== prompt) el.dispatchEvent(new CustomEvent("msk-prompt", { detail: prompt = m.prompt, bubbles: true }));
      veil.classList.remove("on");
      if (m.state === "opening") { queue = []; pending = []; lastEcho = -Infinity; }
      setState(m.state);
    } else if (m.type === "queue") {
      veil.textContent = m.message; veil.classList.add("on"); setState("queue");
    } else if (m.type === "error") note(m.message, true, 8);
    else if (m.type === "note") note(m.message);
    else if (m.type === "kept") {
      const button = $("[data-do=last]");
      button.hidden = !m.frames && !m.points;
      button.title = `${(m.frames / hello.fps).toFixed(1)} seconds: ${m.prompt}`;
    } else if (m.type === "file") { host.save(m.url, m.name); note(`saved ${m.name}`); }
  }

  function frame(buffer) {
    const arrived = performance.now(), f = readFrame(buffer);
    stats.received += 1;
    offset = Math.min(offset + 0.02, arrived - f.sent);
    if (f.still) { queue = []; }
    queue.push(f);
    if (queue.length > 64) { queue.shift(); stats.skipped += 1; }
    kept.push(f);
    if (kept.length > 240) kept.shift();
    host.send(packAck(f.seq));
    createImageBitmap(f.blob).then((bitmap) => { f.bitmap = bitmap; }, () => { queue = queue.filter((g) => g !== f); });
  }

  function lost(why) {
    drags.clear(); greeted = false;
    veil.textContent = why; veil.classList.add("on"); setState("lost");
  }

  // -- drawing -------------------------------------------------------------------------------------------------------
  function resize() {
    const scale = Math.min(devicePixelRatio || 1, 2), width = Math.round(screen.clientWidth * scale), height = Math.round(screen.clientHeight * scale);
    if (!width || !height) return;
    for (const canvas of [video, top]) if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    stale = true;
    paint();
  }

  function paint() {
    if (!current || !current.bitmap) return;
    pen.imageSmoothingEnabled = true; pen.imageSmoothingQuality = "high";
    pen.drawImage(current.bitmap, 0, 0, video.width, video.height);
  }

  function show(f) {
    const now = performance.now();
    if (current && current.bitmap && current !== f) current.bitmap.close();
    current = f; f.shownAt = now;
    stats.drawn += 1;
    draws.push(now);
    while (draws.length > 1 && now - draws[0] > 2000) draws.shift();
    if (f.echo > lastEcho) {
      lastEcho = f.echo;
      pending = pending.filter((t) => t > f.echo || !latencies.push(now - t));
      if (latencies.length > 300) latencies.splice(0, latencies.length - 300);
    }
    const marked = new Set();
    for (const m of f.marks) {
      const p = points.get(m.id);
      marked.add(m.id);
      if (!p) continue;
      p.shown = { x: m.x, y: m.y };
      p.trail.push(p.shown);
      if (p.trail.length > 18) p.trail.shift();
    }
    for (const [id, p] of points) if (!marked.has(id)) p.shown = null;
    if (f.still) for (const p of points.values()) p.trail = [];
    paint();
  }

  function tick() {
    if (!el.isConnected && greeted) { if (++tick.away > 120) return api.close(); } else tick.away = 0;
    const now = performance.now();
    let due = null;
    while (queue.length && queue[0].bitmap && (queue[0].still || queue[0].pts + offset + 6 <= now)) {
      if (due) { due.bitmap.close(); stats.skipped += 1; }
      due = queue.shift();
    }
    if (due) show(due);
    if (samples.length) {
      while (samples.length) host.send(packSamples(samples.splice(0, 64)));
    }
    if (due || stale || drags.size || (hintUntil && now > hintUntil)) overlay(now);
    if (now - tick.last > 250) { tick.last = now; figures(now); }
    requestAnimationFrame(tick);
  }
  tick.last = 0; tick.away = 0;

  const placeOf = (p) => p.shown && state !== "ready" && state !== "opening" ? p.shown : p;

  function overlay(now) {
    stale = false;
    if (now > hintUntil) hintUntil = 0;
    const w = top.width, h = top.height, unit = w / Math.max(1, screen.clientWidth);
    ink.clearRect(0, 0, w, h);
    const held = new Set([...drags.values()].map((d) => d.id));
    for (const [id, p] of points) {
      const here = placeOf(p), x = here.x * w, y = here.y * h, tx = p.x * w, ty = p.y * h;
      const colour = { pin: "255,93,93", path: "90,169,255" }[p.kind] || "61,220,151";
      if (p.kind !== "pin" && p.trail.length > 1 && state === "playing") {
        ink.lineCap = "round"; ink.lineWidth = 3 * unit;
        for (let i = 1; i < p.trail.length; i++) {
          ink.strokeStyle = `rgba(${colour},${0.55 * i / p.trail.length})`;
          ink.beginPath(); ink.moveTo(p.trail[i - 1].x * w, p.trail[i - 1].y * h); ink.lineTo(p.trail[i].x * w, p.trail[i].y * h); ink.stroke();
        }
      }
      if (p.kind !== "pin" && Math.hypot(tx - x, ty - y) > 4 * unit) {           // a leash to where the hand is
        ink.strokeStyle = "rgba(255,255,255,.55)"; ink.lineWidth = 1.5 * unit; ink.setLineDash([4 * unit, 4 * unit]);
        ink.beginPath(); ink.moveTo(x, y); ink.lineTo(tx, ty); ink.stroke(); ink.setLineDash([]);
        ink.strokeStyle = `rgba(${colour},.95)`; ink.lineWidth = 2 * unit;
        ink.beginPath(); ink.arc(tx, ty, 7 * unit, 0, 7); ink.stroke();
      }
      const r = (held.has(id) ? 8 : 6.5) * unit;
      ink.fillStyle = "rgba(0,0,0,.3)";
      ink.beginPath(); ink.arc(x, y + unit, r + 2.5 * unit, 0, 7); ink.fill();
      ink.fillStyle = p.leaving ? "rgba(0,0,0,.25)" : `rgb(${colour})`;
      ink.strokeStyle = p.leaving ? `rgb(${colour})` : "#fff"; ink.lineWidth = 2 * unit;
      ink.beginPath(); ink.arc(x, y, r, 0, 7); ink.fill(); ink.stroke();
      if (p.kind === "pin") { ink.fillStyle = "#fff"; ink.beginPath(); ink.arc(x, y, 2.2 * unit, 0, 7); ink.fill(); }
      if (id === chosen || id === over) {
        ink.strokeStyle = id === chosen ? "rgba(255,255,255,.9)" : "rgba(255,255,255,.45)"; ink.lineWidth = 1.5 * unit;
        ink.beginPath(); ink.arc(x, y, r + 5 * unit, 0, 7); ink.stroke();
      }
    }
    const idle = state === "ready" ? (script ? "A kept session: Enter plays it again" : points.size ? "Drag a point to begin, or press Enter" : "Press on anything and drag it")
      : state === "paused" ? "Paused: Space goes on" : state === "ended" ? "Ended: Enter begins again" : "";
    const text = now < hintUntil ? hintText : idle;
    if (hint.textContent !== text && text) hint.textContent = text;
    hint.classList.toggle("on", !!text && !veil.classList.contains("on"));
    hint.classList.toggle("error", now < hintUntil && hintBad);
  }

  function figures(now) {
    const fps = state === "playing" && draws.length > 4 && now - draws[draws.length - 1] < 1000 ? 1000 * (draws.length - 1) / (draws[draws.length - 1] - draws[0]) : NaN;
    stats.fps = fps; stats.latency = median(latencies);
    $(".fps").textContent = fps ? fps.toFixed(0) : "–";
    $(".ms").textContent = latencies.length ? stats.latency.toFixed(0) : "–";
    $(".p95").textContent = latencies.length ? share95(latencies).toFixed(0) : "–";
    $(".chunk").textContent = current && !current.still ? current.chunk : "–";
    $(".q").textContent = current ? current.quality : "–";
    $(".way").textContent = host.way || "";
  }

  function refresh() {
    const on = state === "playing" || state === "paused";
    $(".state").textContent = WORDS[state] || state;
    $(".dot").className = "dot " + state;
    $("[data-do=toggle] span").textContent = on ? "End" : state === "ended" ? "Again" : "Start";
    $("[data-do=toggle]").classList.toggle("main", !on);
    $("[data-do=hold] span").textContent = state === "paused" ? "Resume" : "Pause";
    $("[data-do=toggle]").disabled = !greeted || state === "empty";
    $("[data-do=hold]").disabled = !on;
    $("[data-do=reset]").disabled = !greeted || state === "empty";
    $("[data-do=undo]").disabled = !greeted || !undoable;
    $("[data-do=redo]").disabled = !greeted || !redoable;
    $("[data-do=anchor]").disabled = !on;
    for (const deed of ["file", "last", "bring"]) $(`[data-do=${deed}]`).disabled = !greeted;
    $("[data-do=file] span").textContent = EXPORTS[$(".what").value];
    for (const b of root.querySelectorAll("[data-tool]")) b.setAttribute("aria-pressed", String(b.dataset.tool === tool));
    stale = true;
    for (const b of root.querySelectorAll("[data-keep]")) b.setAttribute("aria-pressed", String((b.dataset.keep === "yes") === keep));
  }

  // -- hands ---------------------------------------------------------------------------------------------------------
  function where(event) {
    const r = screen.getBoundingClientRect();
    return { x: (event.clientX - r.left) / r.width, y: (event.clientY - r.top) / r.height };
  }

  function nearest(at) {
    let best = null, least = 18 / Math.max(1, screen.clientWidth);
    const tall = screen.clientHeight / Math.max(1, screen.clientWidth);
    for (const [id, p] of points) {
      const here = placeOf(p), far = Math.hypot(here.x - at.x, (here.y - at.y) * tall);
      if (far < least) { best = id; least = far; }
    }
    return best;
  }

  function down(event) {
    if (!greeted || event.button > 0) return;
    event.preventDefault();
    box.focus({ preventScroll: true });
    if (state === "ended" || state === "failed") return note("This take has ended: press Enter to begin again.");
    const at = where(event), t = event.timeStamp, found = nearest(at), pinning = tool === "pin" || event.shiftKey;
    if (found !== null && pinning) {
      chosen = found;
      return void say({ type: "pin", ids: [found], on: points.get(found).kind !== "pin" });
    }
    let id = found, dx = 0, dy = 0;
    if (found === null) {
      if (points.size >= hello.max_points) return note(`There are ${points.size} points already: remove one first.`);
      id = nextId++;
      points.set(id, { kind: pinning ? "pin" : "live", x: at.x, y: at.y, shown: null, trail: [], born: performance.now(), leaving: false });
      say({ type: "add", id, kind: pinning ? "pin" : "live", x: at.x, y: at.y, t });
      pending.push(t);
    } else {
      const here = placeOf(points.get(id));
      dx = here.x - at.x; dy = here.y - at.y;
    }
    chosen = id; stale = true;
    if (pinning) return;
    try { top.setPointerCapture(event.pointerId); } catch { }
    drags.set(event.pointerId, { id, dx, dy, moved: false, fresh: found === null, from: at });
    top.classList.add("dragging");
    refresh();
  }

  function move(event) {
    const drag = drags.get(event.pointerId);
    if (!drag) {
      over = event.pointerType === "touch" ? null : nearest(where(event));
      stale = true;
      return void top.classList.toggle("over", over !== null);
    }
    const p = points.get(drag.id);
    if (!p) return;
    const events = event.getCoalescedEvents && event.getCoalescedEvents().length ? event.getCoalescedEvents() : [event];
    for (const e of events) {
      const at = where(e);
      if (!drag.moved) {
        if (Math.hypot((at.x - drag.from.x) * screen.clientWidth, (at.y - drag.from.y) * screen.clientHeight) < 3) continue;
        drag.moved = true;
        p.kind = "live";
        say({ type: "grab", ids: [drag.id], t: e.timeStamp });
        if (state === "ready" || state === "opening") say({ type: "start" });
      }
      p.x = clamp(at.x + drag.dx); p.y = clamp(at.y + drag.dy);
      samples.push({ t: e.timeStamp, id: drag.id, x: p.x, y: p.y });
      if (state === "playing") pending.push(e.timeStamp);
    }
    if (pending.length > 2000) pending.splice(0, 1000);
  }

  function up(event) {
    const drag = drags.get(event.pointerId);
    if (!drag) return;
    drags.delete(event.pointerId);
    stale = true;
    top.classList.toggle("dragging", drags.size > 0);
    while (samples.length) host.send(packSamples(samples.splice(0, 64)));
    if (drag.moved) say({ type: "release", ids: [drag.id], t: event.timeStamp, keep });
  }

  top.addEventListener("pointerdown", down);
  top.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) top.addEventListener(kind, up);
  top.addEventListener("pointerleave", () => { over = null; stale = true; });
  top.addEventListener("contextmenu", (event) => event.preventDefault());

  const acts = {
    toggle: () => say({ type: state === "playing" || state === "paused" ? "stop" : "start" }),
    hold: () => say({ type: state === "paused" ? "resume" : "pause" }),
    reset: () => say({ type: "reset" }),
    undo: () => say({ type: "undo" }),
    redo: () => say({ type: "redo" }),
    anchor: () => { if (state === "playing" || state === "paused") say({ type: "anchor" }); },
    help: () => $(".help").classList.toggle("on"),
    file: () => say({ type: "export", what: $(".what").value, mark: $(".tag").checked }),
    last: () => say({ type: "load", take: last }),
    bring: () => {
      const input = document.createElement("input");
      input.type = "file"; input.accept = ".json,.jsonl";
      input.onchange = () => host.bring(input.files[0]).then((why) => why && note(why, true, 8), (error) => note(`The file could not be sent: ${error.message}`, true, 8));
      input.click();
    },
    remove: () => { if (chosen !== null) { points.delete(chosen); say({ type: "remove", ids: [chosen] }); chosen = null; } },
  };

  root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.do) acts[button.dataset.do]();
    if (button.dataset.tool) tool = button.dataset.tool;
    if (button.dataset.keep) keep = button.dataset.keep === "yes";
    refresh();
  });

  $(".what").addEventListener("change", refresh);

  function nudge(x, y) {
    const p = points.get(chosen);
    if (!p || p.kind === "pin") return;
    const t = performance.now();
    p.x = clamp(p.x + x); p.y = clamp(p.y + y);
    say({ type: "grab", ids: [chosen], t });
    host.send(packSamples([{ t: t + 1, id: chosen, x: p.x, y: p.y }]));
    say({ type: "release", ids: [chosen], t: t + 2, keep: true });
    if (state === "ready") say({ type: "start" });
  }

  function key(event) {
    if (!greeted || event.defaultPrevented || event.altKey) return;
    const target = event.composedPath()[0], inside = event.composedPath().includes(box);
    if (!inside && (!host.everywhere || target.closest?.("input, textarea, select, button, a, [contenteditable=true], [role=listbox], [role=option]"))) return;
    if (inside && target.closest?.("select, input")) return;
    if (inside && target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return;
    const step = event.shiftKey ? 0.1 : 0.02, chord = event.ctrlKey || event.metaKey;
    const deed = chord ? { z: event.shiftKey ? acts.redo : acts.undo, y: acts.redo }[event.key.toLowerCase()] : {
      Enter: acts.toggle, " ": acts.hold, Delete: acts.remove, Backspace: acts.remove, Escape: () => { chosen = null; $(".help").classList.remove("on"); },
      a: acts.anchor, A: acts.anchor, "?": acts.help,
      ArrowLeft: chosen !== null && (() => nudge(-step, 0)), ArrowRight: chosen !== null && (() => nudge(step, 0)),
      ArrowUp: chosen !== null && (() => nudge(0, -step)), ArrowDown: chosen !== null && (() => nudge(0, step)),
    }[event.key];
    if (!deed || (event.repeat && !event.key.startsWith("Arrow"))) return;
    event.preventDefault(); event.stopPropagation();
    deed();
    stale = true;
  }
  const ears = host.everywhere ? document : box;
  ears.addEventListener("keydown", key);

  const watcher = new ResizeObserver(resize);
  watcher.observe(screen);

  const api = {
    stats, points, kept, host, latencies,
    get state() { return state; },
    get hello() { return hello; },
    get current() { return current; },
    say,
    get prompt() { return prompt; },
    follow: (prompt) => say({ type: "say", prompt }),
    open: (image, prompt, seed) => say({ type: "open", image, prompt, seed }),
    ...acts,
    // The pixels of a frame this page received (the shown one unless told): {width, height, data} with data RGBA.
    async pixels(f = current) {
      const bitmap = await createImageBitmap(f.blob), canvas = new OffscreenCanvas(bitmap.width, bitmap.height), c = canvas.getContext("2d");
      c.drawImage(bitmap, 0, 0);
      return c.getImageData(0, 0, bitmap.width, bitmap.height);
    },
    close() { watcher.disconnect(); ears.removeEventListener("keydown", key); host.close(); },
  };
  el.mskStage = api;
  el.classList.add("msk-stage-host");
  resize(); refresh();
  host.connect({ word, frame, lost });
  requestAnimationFrame(tick);
  return api;
}
