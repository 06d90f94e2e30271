// The stage: a canvas that plays a stream and sends back what pointers do. Plain script, no build, nothing from outside:
// look.js, ways.js, ink.js and flying.js stand before it in one text.
//
//     const stage = mountStage(element, socketHost({url, token}))        // a page
//     const stage = mountStage(element, modelHost(model))                // a notebook (anywidget)
//
// What goes over the line is described in protocol.py. The overlay is drawn here, at the screen's own rate; frames are
// shown when the server's clock says so. For tests and other scripts, `element.mskStage` is the stage.

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
const share95 = (list) => list.length ? [...list].sort((a, b) => a - b)[Math.ceil(0.95 * list.length) - 1] : NaN;        // not exceeded by 95 %
const clamp = (v, beyond = 0) => Math.min(Math.max(v, -beyond), 1 + beyond);
const GLIDE = 500, CREEP = 2e-5;            // milliseconds in which most of a glide is over; shares a millisecond: its end
const BEYOND = 0.5;                         // as in protocol.py: a hand may lead out of the picture
const lastOf = (list) => list[list.length - 1];

// -- the connection: three ways to the server, tried in this order -----------------------------------------------------
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
// `listen(begin, take, stop)` is over when the answer is, with why; `post(key, body, keepalive)` gives a status.
function longLine(name, { hear, gone }, listen, post) {
  const stop = new AbortController();
  let up = [], key = "", busy = false, over = false, held = new Uint8Array(0);
  const end = (why) => { if (!over) { over = true; stop.abort(); gone(why); } };
  async function send() {
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
    const status = await post(key, new Blob(parts)).catch(() => 404);
    if (status === 404 || status === 403) return end("");
    setTimeout(() => { busy = false; send(); }, 30);
  }
  function take(piece) {
    const joined = new Uint8Array(held.length + piece.length);
    joined.set(held); joined.set(piece, held.length); held = joined;
    for (let size; held.length >= 5 && held.length >= 5 + (size = new DataView(held.buffer, held.byteOffset).getUint32(1, true)); held = held.subarray(5 + size)) {
      const data = held.slice(5, 5 + size);
      try { hear(held[0] ? data.buffer : new TextDecoder().decode(data)); } catch (error) { reportError(error); }
    }
  }
  listen((itsKey) => { key = itsKey; send(); }, take, stop.signal).then(end, () => end(""));
  return {
    name,
    send(data) { if (!over && up.length < 1000) { up.push(data); send(); } return !over; },
    close(code) { if (code === 1000 && key) post(key, "", true).catch(() => {}); end(""); },
  };
}

function postLine({ at, token, session, ...on }) {
  const where = at("stream"), headers = { "x-msk-token": token };
  if (session) where.searchParams.set("resume", session);
  return longLine("http", on, async (begin, take, signal) => {
    const answer = await fetch(where, { method: "POST", headers, signal });
    if (!answer.ok) return (await answer.text()).slice(0, 200);
    begin(answer.headers.get("x-msk-line"));
    for (const reader = answer.body.getReader(); ;) {
      const { value, done } = await reader.read();
      if (done || signal.aborted) return "";
      take(value);
    }
  }, (key, body, keepalive) => fetch(at("in/" + key), { method: "POST", headers, body, keepalive }).then(({ status }) => status));
}

// Where only Gradio's own routes are let through (events.py). It would hold any number of pieces for a page that is slow, so
// the page says how many have come; where it has nothing else to say, by a ping.
function eventsLine({ at, token, session, ...on }) {
  const call = (where, data, options) => fetch(at("../gradio_api/" + where), { method: "POST", body: JSON.stringify({ data: [token, ...data] }),
    headers: { "content-type": "application/json" }, ...options });
  const run = async (name, ...data) => (await (await call("run/msk_" + name, data, { keepalive: !data[1] })).json()).data;
  let came = 0;
  const line = longLine("events", on, async (begin, take, signal) => {
    const answer = await call("call/msk_stream", [session], { signal });
    if (!answer.ok) return "";
    const source = new EventSource(at("../gradio_api/call/msk_stream/" + (await answer.json()).event_id)), close = () => source.close();
    signal.addEventListener("abort", close);
    return new Promise((done) => {
      source.addEventListener("generating", ({ data }) => {
        const [text] = JSON.parse(data);
        if (!came++) return begin(text);
        take(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
        if (came % 8 === 0) line.send(JSON.stringify({ type: "ping", t: performance.now() }));
      });
      source.addEventListener("complete", () => done(""));
      source.addEventListener("error", ({ data }) => done(data ? JSON.parse(data).error : ""));
    }).finally(close);
  }, async (key, body) => (await run("post", key, body && await base64(body), came - 1))[0]);
  return { ...line, bring: async (file, id) => (await run("bring", id, await base64(file)))[1] };
}

const base64 = async (blob) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.readAsDataURL(blob);
});

// A line that comes back by itself and asks for the session it had. A way on which nothing is heard gives room to the next.
function socketHost({ url, token }) {
  const ways = [webSocketLine, postLine, eventsLine], at = (end) => new URL(url.replace(/ws$/, end), document.baseURI);
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
      if (line.bring) return line.bring(file, session);
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
  let up = [], timer = null, waiting = 0, fresh = true;
  return {
    everywhere: false,
    connect(on) {
      const hear = (content, buffers) => {
        if (content.type !== "pulled") return;
        waiting = 0;
        if (content.words.some((word) => word.type === "hello")) fresh = false;
        content.words.forEach(on.word);
        buffers.forEach((b) => on.frame(b instanceof ArrayBuffer ? b : b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength)));
      };
      const pull = () => {
        if (waiting && performance.now() - waiting < 3000) return;
        waiting = performance.now();
        const words = up.filter((m) => !(m instanceof ArrayBuffer)), buffers = up.filter((m) => m instanceof ArrayBuffer);
        const order = up.map((m) => m instanceof ArrayBuffer ? 1 : 0);
        up = [];
        model.send({ type: "pull", fresh, words, order }, undefined, buffers);
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
  const $ = (selector) => root.querySelector(selector), all = (selector) => root.querySelectorAll(selector);
  const box = $(".stage"), screen = $(".screen"), video = $(".video"), top = $(".top"), veil = $(".veil"), hint = $(".hint");
  const pen = video.getContext("2d"), ink = top.getContext("2d"), given = $(".given").getContext("2d");

  let hello = { width: 1, height: 1, fps: 24, max_points: 144, max_nodes: 160, map: false, gaze: false };
  let state = "connecting", wanted = state;    // what the server told last, and what that will be once it has heard all
  let greeted = false, looking = false, gazing = false, gazer = -1, nextId = 1;
  let tool = "live", keep = "holds", gridKind = "live", spacing = 0.14, wayLoop = "once", waySpeed = 1, sliding = false;
  let over = null, rubber = null;             // the point and the place under the pointer
  let node = null;                            // which node of the chosen path is chosen
  let cross = null, corner = null;            // the keyboard's place, and where its box began
  let draft = null;                           // a path that is being drawn: {id, nodes, clicked, clickedAt}
  let offset = Infinity, lastEcho = -Infinity, undoable = 0, redoable = 0, script = 0, prompt = null, stale = true;
  let grip = false, rest = false, things = [];         // do points take whole things, does the rest stay; outlines
  let loading = null;                         // the latest word on a model that is on its way, or failed to come
  let said = 0;                               // words sent so far: each has a number
  let current = null, queue = [], samples = [], pending = [], hintUntil = 0, hintText = "", hintBad = false;
  const remembered = { get take() { try { return localStorage.getItem("msk-take"); } catch { return null; } },
    set take(name) { try { localStorage.setItem("msk-take", name); } catch { } } };
  let last = null;                            // the take that this browser made before
  let wished = null;                          // the picture that was asked for before the stage was this page's
  // id -> {kind, x, y, shown, trail, leaving, nodes, loop, speed, head}: x, y where it should be, shown where it is;
  // of a path, x, y is its start, nodes its way and head the time it is shown at
  const points = new Map();
  const chosen = new Set();
  const asked = new Map();            // point's id, "state", "grip" or "rest" -> the number of the last word about it
  const hands = new Map();            // pointerId -> what it is doing: {ids, move(event, at), up(event)}
  const maps = new Map();             // chunk -> what the model was told then
  const gazes = new Map();            // chunk -> where it looked
  const touches = matchMedia("(hover: none)");          // no keys are at hand
  const kept = [], draws = [], latencies = [], errors = [];
  const stats = { received: 0, drawn: 0, skipped: 0, errors };
  const tall = () => hello.height / hello.width;
  const runs = (now = state) => now === "playing" || now === "paused";

  // -- the line ------------------------------------------------------------------------------------------------------
  // Until the server has heard the last word about something (`state` says it), the page knows better how that is: a key
  // pressed twice while the first word is on its way takes back what the first one asked for.
  function say(message, about = message.ids || ("id" in message ? [message.id] : [])) {
    said += 1;
    for (const id of about) asked.set(id, said);
    return host.send({ ...message, n: said });
  }

  function ask(type, then) {
    wanted = then;
    hush();
    say({ type }, ["state"]);
  }

  const play = () => { if (wanted === "ready" || wanted === "opening") ask("start", "playing"); };

  function note(text, bad = false, seconds = 5) {
    hintText = text; hintBad = bad; hintUntil = performance.now() + 1000 * seconds;
    stale = true;
    if (bad) errors.push(text);
  }

  function hush() { hintUntil = 0; stale = true; }

  function setState(next) {
    state = next;
    el.dataset.state = next;
    el.dispatchEvent(new CustomEvent("msk-state", { detail: next, bubbles: true }));
    refresh();
  }

  function newPoint(id, kind, { x, y }) {
    points.set(id, { kind, x, y, shown: null, trail: [], leaving: false, nodes: null, head: null });
    nextId = Math.max(nextId, id + 1);
  }

  function takePoints(listed, heard) {
    const held = new Set([...hands.values()].flatMap((hand) => hand.ids)), ids = new Set(listed.map((p) => p.id));
    for (const [id, n] of asked) if (n <= heard) asked.delete(id);
    for (const id of points.keys()) if (!ids.has(id) && !asked.has(id)) points.delete(id);
    for (const p of listed) {
      if (asked.has(p.id)) continue;
      const { nodes = null, loop, speed } = p;
      if (!points.has(p.id)) newPoint(p.id, p.kind, p);
      const mine = points.get(p.id);
      Object.assign(mine, { kind: p.kind, leaving: p.leaving, loop, speed });
      if (!held.has(p.id)) Object.assign(mine, { x: p.x, y: p.y, nodes });
    }
    for (const id of chosen) if (!points.has(id)) chosen.delete(id);
    if (node >= (points.get(editable())?.nodes.length ?? 0)) node = null;
  }

  function word(m) {
    if (m.type === "hello") {
      const another = m.session !== hello.session, model = hello.playing;
      if (another && host.everywhere) last = remembered.take;
      loading = null;
      hello = m; greeted = true; offset = Infinity; lastEcho = -Infinity; queue = []; pending = [];
      asked.clear();                                                    // what a lost line took with it is not done
      hands.clear(); draft = corner = null;
      $(".model").replaceChildren(...(m.models || []).map(({ name, label, why_not }) =>
        Object.assign(document.createElement("option"), { value: name, textContent: why_not ? `${label} (not here)` : label,
          selected: name === m.playing })));
      showModels();
      if (model && model !== m.playing) el.dispatchEvent(new CustomEvent("msk-model", { detail: m.playing, bubbles: true }));
      screen.style.aspectRatio = `${m.width} / ${m.height}`;
      screen.style.maxWidth = `calc(60vh * ${m.width / m.height})`;
      veil.classList.remove("on");
      if (last && m.keeps) say({ type: "recall", take: last });
      if (wished) say(wished);
      wished = null;
      if (looking &&= m.map) say({ type: "look", on: true });
      if (gazing &&= m.gaze) askGaze();
      resize();
    } else if (m.type === "state") {
      takePoints(m.points, m.heard);
      undoable = m.undo; redoable = m.redo; script = m.script; things = m.things;
      if (!asked.has("grip")) grip = m.grip;
      if (!asked.has("rest")) rest = m.rest;
      if (!asked.has("state")) wanted = m.state;
      if (m.take && host.everywhere) remembered.take = m.take;
      if (m.prompt !== prompt) el.dispatchEvent(new CustomEvent("msk-prompt", { detail: prompt = m.prompt, bubbles: true }));
      veil.classList.remove("on");
      if (m.state === "opening") {
        queue = []; pending = []; lastEcho = -Infinity; maps.clear(); gazes.clear();
        showSights(); forgetMade();
      }
      setState(m.state);
    } else if (m.type === "map" || m.type === "gaze") {
      const known = m.type === "map" ? maps : gazes;
      known.set(m.chunk, m);
      for (const chunk of known.keys()) if (chunk < m.chunk - 4) known.delete(chunk);
      showSights();
    } else if (m.type === "chunk") {
      showMade(m);
    } else if (m.type === "queue") {
      leave(m.message, "queue");
    } else if (m.type === "model") {
      loading = m.state === "here" ? null : m;
      showModels();
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

  // The stage is not this page's now.
  function leave(why, next) {
    hands.clear(); fingers.clear(); flying.stop(); greeted = false; draft = corner = null;
    veil.textContent = why; veil.classList.add("on"); setState(next);
  }

  const lost = (why) => leave(why, "lost");

  // -- drawing -------------------------------------------------------------------------------------------------------
  function resize() {
    const scale = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(screen.clientWidth * scale), height = Math.round(screen.clientHeight * scale);
    if (!width || !height) return;
    // The page enlarges the rest of the way: to fill the screen smoothly here, for each frame, costs a core without a GPU.
    const most = Math.min(1, 2 * hello.width / width);
    for (const [canvas, share] of [[video, most], [top, 1]]) {
      const size = [Math.round(width * share), Math.round(height * share)];
      if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    }
    stale = true;
    paint();
  }

  function paint() {
    if (!current || !current.bitmap) return;
    pen.imageSmoothingEnabled = true; pen.imageSmoothingQuality = "high";
    pen.drawImage(current.bitmap, 0, 0, video.width, video.height);
  }

  function show(f) {
    const now = performance.now(), before = current;
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
    for (const p of points.values()) p.shown = null;
    for (const m of f.marks) {
      const p = m.kind === "camera" ? null : points.get(m.id);       // the camera's grid has numbers of its own
      if (!p) continue;
      p.shown = { x: m.x, y: m.y };
      p.trail.push(p.shown);
      if (p.trail.length > 18) p.trail.shift();
      if (p.nodes) p.head = f.still ? null : timeNear(p.nodes, m.x, m.y, (p.head || 0) + (p.speed || 1) / hello.fps, tall());
    }
    if (f.still) {
      for (const p of points.values()) { p.trail = []; p.head = null; }
      const { canvas } = given, { width, height } = f.bitmap;
      Object.assign(canvas, { width, height });
      given.drawImage(f.bitmap, 0, 0);
    }
    if (!before || before.chunk !== f.chunk || before.still !== f.still) showSights();
    paint();
  }

  // Of the one point that is chosen it is asked where its place looks.
  const lone = () => chosen.size === 1 ? [...chosen][0] : -1;
  function askGaze() {
    say({ type: "gaze", on: gazing, point: gazer = lone() }, []);
  }

  const showSights = () => { showMap(); showGaze(); };
  const ofShown = (known) => known.get(current && !current.still ? current.chunk : -1);

  // What the model was told for the chunk that is on the screen: its latent frames side by side.
  function showMap() {
    const told = ofShown(maps), figure = $(".map"), tiles = $(".tiles");
    figure.hidden = !looking;
    if (!looking) return;
    $(".map figcaption").textContent = !told ? "Nothing has been told yet: here will be the motion map of each chunk."
      : `Chunk ${told.chunk}: the motion map, one picture for each latent frame. Black: nothing is said there.`;
    tiles.replaceChildren(...Array.from({ length: told ? told.frames : 3 }, (_, i) => {
      const tile = document.createElement("i");
      tile.style.aspectRatio = `${hello.width} / ${hello.height}`;
      if (told) Object.assign(tile.style, { backgroundImage: `url(data:image/png;base64,${told.picture})`,
        backgroundSize: `${100 * told.frames}% 100%`, backgroundPosition: `${100 * i / Math.max(1, told.frames - 1)}% 0` });
      return tile;
    }));
  }

  // Where it looked while it made that chunk: all layers together, and below it each as a thin bar.
  function showGaze() {
    const seen = ofShown(gazes), bars = $(".bars"), rows = seen ? seen.layers.map(([, ...row]) => row) : [];
    $(".gaze").hidden = !gazing;
    if (!gazing) return;
    const all = PARTS.map((_, i) => rows.reduce((sum, row) => sum + row[i] / rows.length, 0));
    const percents = PARTS.map((part, i) => seen ? `${part} ${Math.round(100 * all[i])} %` : part);
    for (const [i, part] of PARTS.entries()) $(`.legend .${part}`).textContent = percents[i];
    const cells = seen && seen.cells;
    $(".spot").hidden = !cells;
    $(".spot i").style.backgroundImage = cells ? `url(data:image/png;base64,${cells})` : "none";
    $(".gaze figcaption").textContent = !seen ? "Nothing has been made yet: here will be where the attention of each chunk goes."
      : `Chunk ${seen.chunk}: where its attention goes. The thin bars are layers, first to last.${
        cells ? " Glowing: where in the sink the chosen point looks." : ""}`;
    bars.setAttribute("aria-label", percents.join(", "));
    while (bars.children.length > rows.length + 1) bars.lastChild.remove();
    while (bars.children.length < rows.length + 1) bars.append(barOf(PARTS));
    [all, ...rows].forEach((row, i) => row.forEach((share, k) => { bars.children[i].children[k].style.flexGrow = 100 * share; }));
    rows.forEach((_, i) => { bars.children[i + 1].title = `layer ${seen.layers[i][0] + 1}`; });
  }

  // The models on offer: what the one in the list needs, or how far it is with the one that is being loaded.
  function showModels() {
    const offers = hello.models || [], offer = offers.find(({ name }) => name === $(".model").value), bar = $("progress");
    const busy = !!loading && loading.state === "loading", told = $(".told");
    $(".models").hidden = !offers.length;
    if (!offer) return;
    told.textContent = loading ? loading.message : offer.why_not ? `${offer.needs}: ${offer.why_not}` : offer.needs;
    told.classList.toggle("bad", loading ? !busy : !!offer.why_not);
    $("[data-do=change]").disabled = busy || !!offer.why_not || offer.name === hello.playing;
    bar.hidden = !busy;
    if (busy && loading.share !== null) bar.value = loading.share; else bar.removeAttribute("value");
  }

  function forgetMade() {
    $(".memory").replaceChildren();
    $(".took").textContent = "–"; $(".fewer").textContent = ""; $(".made").title = "no chunk has been made yet";
  }

  // What the latest chunk took, and what the next one will see of those before it.
  function showMade({ chunk, whole, steps: [steps, full], memory: { sink, window } }) {
    const pieces = [...sink.map(() => "sink"), ...window.map(() => "window"), "now"];
    $(".memory").replaceChildren(...pieces.map((what) => Object.assign(document.createElement("i"), { className: what })));
    $(".given").style.visibility = sink.includes(0) ? "visible" : "hidden";     // a fresh anchor is another picture
    $(".took").textContent = whole.toFixed(0);
    $(".fewer").textContent = steps < full ? ` ${steps}/${full}` : "";
    $(".made").title = `Chunk ${chunk} took ${whole.toFixed(0)} ms in ${steps} denoising steps${
      steps < full ? ` (of ${full}: the machine is busy)` : ""}. The next one sees the sink (${sink.join(", ") || "nothing"}) and the window (${
      window.join(", ") || "nothing"}).`;
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
    for (const hand of hands.values()) if (hand.tick) hand.tick(now);
    sendSamples();
    flying.tick(now);
    const wanted = stale || hands.size || (hintUntil && now > hintUntil);
    if (due || (wanted && now - overlay.last > 28)) overlay(now);           // it costs the page most: with the video, or 30 times a second
    if (now - tick.last > 250) { tick.last = now; figures(now); }
    requestAnimationFrame(tick);
  }
  tick.last = 0; tick.away = 0; overlay.last = 0;

  function sendSamples() {
    while (samples.length) host.send(packSamples(samples.splice(0, 64)));
  }

  const placeOf = (p) => p.shown && state !== "ready" && state !== "opening" ? p.shown : p;

  function overlay(now) {
    stale = false; overlay.last = now;
    if (now > hintUntil) hintUntil = 0;
    const w = top.width, h = top.height, unit = w / Math.max(1, screen.clientWidth), sheet = { ink, w, h, unit };
    ink.clearRect(0, 0, w, h);
    const inHand = new Set([...hands.values()].flatMap((hand) => hand.ids));
    if (current && runs()) inkFlight(sheet, current.marks.filter((m) => m.kind === "camera"));
    if (state !== "playing") for (const corners of things) inkThing(sheet, corners);
    for (const [id, p] of points)
      if (p.nodes) inkWay(sheet, p, { fps: hello.fps, chosen: chosen.has(id) || over === id, head: runs() ? p.head : null });
    for (const [id, p] of points) {
      const here = inside(placeOf(p)), colour = COLOURS[p.kind], { kind, leaving } = p;      // outside, it waits at the edge
      if (p.kind === "live" && p.trail.length > 1 && state === "playing") inkTrail(sheet, p.trail, colour);
      if (!p.nodes && Math.hypot((p.x - here.x) * w, (p.y - here.y) * h) > 4 * unit) inkLeash(sheet, here, p, colour);
      inkPoint(sheet, here, { kind, leaving, held: inHand.has(id), chosen: chosen.has(id), over: over === id });
      if (p.nodes && p.head !== null && runs())
        inkLabel(sheet, here, `${Math.round(p.head / p.speed * hello.fps)}`, 0, -22, true);
    }
    if (editable() !== null) inkNodes(sheet, points.get(editable()).nodes.map(([t, x, y]) => [t, clamp(x), clamp(y)]), node);
    if (draft) inkDraft(sheet, draft.nodes, draft.clicked ? rubber || cross || spotOf(lastOf(draft.nodes)) : null);
    for (const hand of hands.values()) if (hand.box) inkHandBox(sheet, hand.box, hand.filled);
    if (corner) inkHandBox(sheet, boxOf(corner, cross), tool === "grid");
    if (cross) inkCross(sheet, cross);

    const [enter, space] = touches.matches ? ["Start", "Resume"] : ["Enter", "Space"];
    const begin = points.size ? `Press ${enter} to play, or drag a point` : HINTS[tool];
    const ready = script ? `A kept session: ${enter} plays it again` : begin;
    const idle = { ready, paused: `Paused: ${space} goes on`, ended: `Ended: ${beginAgain()}`,
      failed: `Stopped: ${beginAgain()}` }[state] || "";
    const text = now < hintUntil ? hintText : draft || hands.size || corner ? "" : idle;
    if (hint.textContent !== text && text) hint.textContent = text;
    hint.classList.toggle("on", !!text && !veil.classList.contains("on"));
    hint.classList.toggle("error", now < hintUntil && hintBad);
  }

  function inkHandBox(sheet, rectangle, filled) {
    const spots = filled ? gridSpots(rectangle, spacing, tall()) : [];
    inkBox(sheet, rectangle, spots.slice(0, 400), gridKind, points.size + spots.length <= hello.max_points);
    if (filled) inkLabel(sheet, { x: (rectangle[0] + rectangle[2]) / 2, y: rectangle[1] }, `${spots.length} points`, 0, -12);
  }

  function figures(now) {
    const lately = state === "playing" && draws.length > 4 && now - lastOf(draws) < 1000;
    stats.fps = lately ? 1000 * (draws.length - 1) / (lastOf(draws) - draws[0]) : NaN;
    stats.latency = median(latencies);
    $(".fps").textContent = stats.fps ? stats.fps.toFixed(0) : "–";
    $(".ms").textContent = latencies.length ? stats.latency.toFixed(0) : "–";
    $(".p95").textContent = latencies.length ? share95(latencies).toFixed(0) : "–";
    $(".chunk").textContent = current && !current.still ? current.chunk : "–";
    $(".q").textContent = current ? current.quality : "–";
    $(".way").textContent = host.way || "";
  }

  const chosenWays = () => [...chosen].filter((id) => points.get(id)?.nodes);
  const editable = () => tool === "select" && chosen.size === 1 ? chosenWays()[0] ?? null : null;      // whose nodes are shown

  // Which settings are of use now.
  function optionsNow() {
    if (draft) return "draft";
    if (tool === "grid" || tool === "camera") return tool;
    if (chosen.size && chosenWays().length === chosen.size) return "way";
    return chosen.size > 1 ? "group" : tool;
  }

  function refresh() {
    if (editable() === null) node = null;
    if (gazing && greeted && gazer !== lone()) askGaze();
    const on = runs(wanted), pressed = (name, value) => {
      for (const b of all(`[data-${name}]`)) b.setAttribute("aria-pressed", String(b.dataset[name] === value));
    };
    if ($(".state").textContent !== WORDS[state]) $(".state").textContent = WORDS[state];      // each change is read out
    $(".dot").className = "dot " + state;
    for (const part of all(".tools, .options, .files")) part.inert = !greeted;
    $("[data-do=toggle] span").textContent = on ? "End" : isOver() ? "Again" : "Start";
    $("[data-do=toggle]").classList.toggle("main", !on);
    $("[data-do=hold] span").textContent = wanted === "paused" ? "Resume" : "Pause";
    const picture = state !== "empty";
    const can = { toggle: picture, hold: on, reset: picture, undo: undoable, redo: redoable, anchor: runs(),
      file: true, skip: true, last: true, bring: true, look: true, gaze: true, rest: true };
    for (const deed in can) $(`[data-do=${deed}]`).disabled = !greeted || !can[deed];
    $("[data-do=file]").setAttribute("aria-label", `Export ${EXPORTS[$(".what").value]}`);
    $("[data-do=skip]").hidden = !script;
    $("[data-do=look]").hidden = !hello.map;
    $("[data-do=gaze]").hidden = !hello.gaze;
    $(".grips").hidden = !hello.grips;
    $("[data-do=rest]").setAttribute("aria-pressed", String(rest));
    $("[data-do=look]").setAttribute("aria-pressed", String(looking));
    $("[data-do=gaze]").setAttribute("aria-pressed", String(gazing));
    box.dataset.using = tool;
    pressed("tool", tool); pressed("keep", keep); pressed("kind", gridKind);
    pressed("grip", grip ? "yes" : "no");
    const shown = optionsNow(), way = points.get(chosenWays()[0]);
    for (const options of all("[data-options]")) options.hidden = options.dataset.options !== shown;
    pressed("loop", way ? way.loop : wayLoop);
    if (way && !sliding) $(".speed").value = Math.log2(way.speed);
    $(".times").textContent = `${+(2 ** $(".speed").value).toFixed(2)}×`;
    $(".percent").textContent = `${$(".spacing").value} %`;
    $(".many").textContent = `${chosen.size} chosen`;
    if (draft) $(".counted").textContent = draft.nodes.length > 1 ? `${draft.nodes.length} nodes` : "Click the next node";
    stale = true;
  }

  // -- hands ---------------------------------------------------------------------------------------------------------
  function where(event) {
    const r = screen.getBoundingClientRect();
    return { x: (event.clientX - r.left) / r.width, y: (event.clientY - r.top) / r.height };
  }

  const spotOf = ([, x, y]) => ({ x, y });
  const inside = ({ x, y }) => ({ x: clamp(x), y: clamp(y) }), about = ({ x, y }) => ({ x: clamp(x, BEYOND), y: clamp(y, BEYOND) });
  const boxOf = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)].map((v) => clamp(v));
  const pixelsFrom = (a, b) => Math.hypot((a.x - b.x) * screen.clientWidth, (a.y - b.y) * screen.clientHeight);

  const reachOf = ({ pointerType }) => pointerType === "touch" || pointerType === "pen" ? 28 : 18;      // fingers and pens hide it

  function nearest(at, reach = 18) {
    let best = null;
    for (const [id, p] of points) {
      const far = pixelsFrom(inside(placeOf(p)), at);
      if (far < reach) { best = id; reach = far; }
    }
    return best;
  }

  function nearestWay(at) {
    for (const [id, p] of points)
      if (p.nodes && pixelsFrom(spotOf(wayAt(p.nodes, timeNear(p.nodes, at.x, at.y, 0, tall()))), at) < 10) return id;
    return null;
  }

  function nearestNode(nodes, at, reach) {
    const far = nodes.map((one) => pixelsFrom(inside(spotOf(one)), at)), least = Math.min(...far);
    return least < reach ? far.indexOf(least) : null;
  }

  function choose(ids, more = false) {
    node = null;
    if (!more) chosen.clear();
    for (const id of ids) chosen.add(id);
    refresh();
  }

  function roomFor(count) {
    const fits = points.size + count <= hello.max_points;
    if (!fits) note(count === 1 ? `There are ${points.size} points already: remove one first.`
      : `${count} points and the ${points.size} here are more than ${hello.max_points}: space them wider.`);
    return fits;
  }

  // Each begins what a press does, and gives what the pointer then does, or nothing if the press was all.

  function grab(event, at, ids) {
    catchThem(ids);
    const starts = new Map(), free = new Set([...hands.values()].flatMap((hand) => hand.ids));
    for (const id of ids) if (!free.has(id)) {                          // one alone comes in from the edge, where it is shown
      const p = points.get(id), here = p.nodes ? p : ids.length > 1 ? placeOf(p) : inside(placeOf(p));
      starts.set(id, { x: here.x - at.x, y: here.y - at.y });
    }
    const every = starts.size > 8 ? 40 : 0;             // milliseconds between samples: a line carries only so many
    let moved = false, sampled = -Infinity, latest = [];
    const put = (e) => {
      const now = where(e);
      for (const [id, start] of starts) putPoint(id, { x: now.x + start.x, y: now.y + start.y }, e.timeStamp);
      sampled = e.timeStamp;
    };
    return { ids: [...starts.keys()], holds: true,
      move(events) {
        if (!moved && Math.max(...events.map((e) => pixelsFrom(where(e), at))) < 3) return;
        if (!moved) {
          moved = true;
          say({ type: "grab", ids: this.ids, t: events[0].timeStamp });
          play();
        }
        for (const e of events) {
          latest = latest.filter(({ t }) => e.timeStamp - t < 100).concat({ t: e.timeStamp, ...where(e) });
          if (e.timeStamp - sampled < every) continue;
          put(e);
          if (state === "playing") pending.push(e.timeStamp);
        }
        if (pending.length > 2000) pending.splice(0, 1000);
      },
      up(e) {
        if (moved && every && e.type === "pointerup") put(e);
        sendSamples();
        const speed = keep === "glides" && e.type === "pointerup" ? speedOf(latest, e.timeStamp) : null;
        if (speed) return glide(this.ids, speed, e.timeStamp);
        if (moved) say({ type: "release", ids: this.ids, t: e.timeStamp, keep: keep !== "goes" });
      } };
  }

  // Shares of the picture a millisecond, of the latest places of a hand; null where it rested before it let go.
  function speedOf(places, now) {
    const [first, end] = [places[0], lastOf(places)], time = end ? end.t - first.t : 0;
    if (time < 8 || now - end.t > 100) return null;
    const speed = { x: (end.x - first.x) / time, y: (end.y - first.y) / time };
    return Math.hypot(speed.x, speed.y) > CREEP ? speed : null;
  }

  // Points go on as the hand did that let them go, and come to rest: another hand, that nobody sees.
  function glide(ids, speed, began) {
    const from = new Map(ids.filter((id) => points.has(id)).map((id) => [id, { x: points.get(id).x, y: points.get(id).y }]));
    const me = Symbol("glide"), every = ids.length > 8 ? 40 : 0;
    let sampled = -Infinity;
    hands.set(me, { ids, move() {}, up() {},
      tick(now) {
        if (now - sampled < every) return;
        sampled = now;
        const left = Math.exp(-(now - began) / GLIDE);
        for (const [id, { x, y }] of from)
          putPoint(id, { x: x + speed.x * GLIDE * (1 - left), y: y + speed.y * GLIDE * (1 - left) }, now);
        if (Math.hypot(speed.x, speed.y) * left < CREEP) this.end();
      },
      end() {
        hands.delete(me);
        sendSamples();
        say({ type: "release", ids, t: performance.now(), keep: true });
      } });
  }

  // What glides comes to rest where it is: all of it, or these points.
  function catchThem(ids = null) {
    for (const hand of hands.values()) if (hand.end && (!ids || ids.some((id) => hand.ids.includes(id)))) hand.end();
  }

  // A hand puts a point somewhere; a path is moved whole.
  function putPoint(id, place, t) {
    const p = points.get(id);
    if (!p) return;
    let { x, y } = about(place);
    if (p.nodes) {                                                      // and stays in reach with all of it
      const within = (by, all) => Math.max(-BEYOND - Math.min(...all), Math.min(1 + BEYOND - Math.max(...all), by));
      const dx = within(x - p.x, p.nodes.map((node) => node[1])), dy = within(y - p.y, p.nodes.map((node) => node[2]));
      p.nodes = p.nodes.map(([s, nx, ny]) => [s, nx + dx, ny + dy]);
      x = p.x + dx; y = p.y + dy;
    }
    p.x = x; p.y = y;
    samples.push({ t, id, x, y });
  }

  function add(event, at, kind) {
    if (!roomFor(1)) return null;
    const id = nextId;
    newPoint(id, kind, inside(at));
    say({ type: "add", id, kind, x: clamp(at.x), y: clamp(at.y), t: event.timeStamp });
    pending.push(event.timeStamp);
    choose([id]);
    return kind === "pin" ? null : grab(event, at, [id]);
  }

  function turnPin(id) {
    catchThem([id]);
    choose([id]);
    say({ type: "pin", ids: [id], on: points.get(id).kind !== "pin" });
  }

  function pinThem(on) {
    if (!chosen.size) return;
    catchThem([...chosen]);
    say({ type: "pin", ids: [...chosen], on });
  }

  // A press that moves draws a way in the hand's own time; one that does not is the first of its nodes.
  function draw(event, at, found) {
    at = inside(at);
    if (draft) {
      if (!draft.clicked) return null;                                  // another finger is drawing
      if (event.timeStamp - draft.clickedAt < 400 && pixelsFrom(spotOf(lastOf(draft.nodes)), at) < 12) return void finish();
      const node = [0, at.x, at.y];
      draft.nodes.push(node); draft.clickedAt = event.timeStamp;
      return { ids: [], move(events) { const p = about(where(lastOf(events))); node[1] = p.x; node[2] = p.y; }, up() {} };
    }
    if (found === null && !roomFor(1)) return null;
    const start = found === null ? at : inside(placeOf(points.get(found)));
    const drawn = [[event.timeStamp, start.x, start.y]];
    let moved = false;
    draft = { id: found, nodes: drawn, clicked: false, clickedAt: event.timeStamp };
    return { ids: [],
      move(events) {
        if (!moved && pixelsFrom(where(lastOf(events)), at) < 6) return;
        if (!moved) drawn[0][0] = events[0].timeStamp - 1;              // the time it took to begin is not part of it
        moved = true;
        for (const e of events) {
          const p = about(where(e));
          drawn.push([Math.max(e.timeStamp, lastOf(drawn)[0]), p.x, p.y]);
        }
        stale = true;
      },
      up(e) {
        if (!draft) return;
        if (moved) {
          draft = null;
          lay(found, wayOfHand(drawn, hello.max_nodes));
        } else if (found !== null && points.get(found)?.nodes) {
          draft = null;
          choose([found]);
        } else {
          Object.assign(draft, { nodes: [[0, start.x, start.y]], clicked: true });
          choose([]);
        }
      } };
  }

  function finish() {
    const { id, nodes } = draft;
    draft = null;
    if (nodes.length > 1) lay(id, wayOfClicks(nodes, tall()));
    refresh();
  }

  // A way for a point, new (null) or old.
  function lay(id, nodes, { loop = wayLoop, speed = waySpeed } = points.get(id) || {}) {
    if (!points.has(id)) id = null; else catchThem([id]);
    let room = 8 * hello.max_nodes;                                     // of all paths together
    for (const [other, p] of points) if (other !== id && p.nodes) room -= p.nodes.length;
    if (room < 2) return note("All paths together have as many nodes as are kept: remove one first.");
    if (nodes.length > Math.min(room, hello.max_nodes)) nodes = byTime(nodes, Math.min(room, hello.max_nodes));
    nodes = nodes.map(([t, x, y]) => [+t.toFixed(3), +clamp(x, BEYOND).toFixed(5), +clamp(y, BEYOND).toFixed(5)]);
    const start = { x: nodes[0][1], y: nodes[0][2] };
    if (id === null) newPoint(id = nextId, "path", start);
    Object.assign(points.get(id), { kind: "path", ...start, nodes, loop, speed, head: null });
    say({ type: "path", id, nodes, loop, speed, t: performance.now() });
    choose([id]);
  }

  // One node of a way is dragged.
  function bend(at, id, index) {
    const { x, y } = inside(spotOf(points.get(id).nodes[index]));         // where it is shown
    let moved = false;
    choose([id]);
    node = index;
    return { ids: [id], holds: true,
      move(events) {
        const now = where(lastOf(events));
        if (!moved && pixelsFrom(now, at) < 3) return;
        moved = true;
        moveNode(id, index, { x: x + now.x - at.x, y: y + now.y - at.y });
      },
      up() { if (moved && points.get(id)?.nodes) edit(id, points.get(id).nodes, index); } };
  }

  function moveNode(id, index, place) {
    const p = points.get(id), { x, y } = about(place);
    if (!p?.nodes) return;                                              // it was taken back meanwhile
    p.nodes = p.nodes.map((one, i) => i === index ? [one[0], x, y] : one);
    if (index === 0) Object.assign(p, { x, y });
    stale = true;
  }

  // A way with other nodes, of which this one is chosen.
  function edit(id, nodes, index) {
    const began = nodes[0][0];
    lay(id, nodes.map(([t, ...place]) => [t - began, ...place]));
    node = index < points.get(id).nodes.length ? index : null;          // there may be no room for all
    stale = true;
  }

  function addNode(id, at) {
    const { nodes } = points.get(id), t = timeNear(nodes, at.x, at.y, 0, tall()), after = nodes.findIndex((one) => one[0] > t);
    if (after < 1 || nearestNode(nodes, at, 6) !== null) return;
    if (nodes.length >= hello.max_nodes) return note(`A path has at most ${hello.max_nodes} nodes.`);
    edit(id, nodes.toSpliced(after, 0, [t, at.x, at.y]), after);
  }

  // By the keyboard: one more node, halfway to the next; of the last, from the one before.
  function addNodeBehind(id) {
    const { nodes } = points.get(id), after = Math.min(node + 1, nodes.length - 1);
    if (nodes.length >= hello.max_nodes) return note(`A path has at most ${hello.max_nodes} nodes.`);
    if (nodes[after][0] - nodes[after - 1][0] < 0.01) return note("These two nodes are as near as they can be.");
    edit(id, nodes.toSpliced(after, 0, mix(nodes[after - 1], nodes[after], 0.5)), after);
    tellNode();
  }

  function removeNode(id) {
    const { nodes } = points.get(id);
    if (nodes.length < 3) return note("A path has at least two nodes: with Escape, then Delete, all of it goes.");
    edit(id, nodes.toSpliced(node, 1), null);
    note(`Node taken out: ${nodes.length - 1} are left`, false, 3);
  }

  // What is chosen of paths is sent again, with what `change(path)` makes different.
  function changeWays(change) {
    const ids = chosenWays();
    for (const id of ids) {
      const { nodes, loop, speed } = { ...points.get(id), ...change(points.get(id)) };
      lay(id, nodes, { loop, speed });
    }
    if (ids.length) choose(ids);
  }

  function drawBox(event, at, filled, done) {
    return { ids: [], box: boxOf(at, at), filled,
      move(events) { this.box = boxOf(at, where(lastOf(events))); },
      up(e) { if (e.type === "pointerup") done(this.box, pixelsFrom(at, where(e)) > 6); } };
  }

  function fill(rectangle) {
    const spots = gridSpots(rectangle, spacing, tall());
    if (!roomFor(spots.length)) return;
    const id = nextId, ids = spots.map((_, k) => id + k);
    spots.forEach((spot, k) => newPoint(id + k, gridKind, spot));
    say({ type: "grid", id, kind: gridKind, box: rectangle, spacing, t: performance.now() }, ids);
    choose(ids);
  }

  function chooseIn([left, top, right, bottom], more) {
    const within = ({ x, y }) => x >= left && x <= right && y >= top && y <= bottom;
    choose([...points].filter(([, p]) => within(inside(placeOf(p)))).map(([id]) => id), more);
  }

  const isOver = () => wanted === "ended" || wanted === "failed";
  const beginAgain = () => `press ${touches.matches ? "Again" : "Enter"} to begin anew`;
  const tellOver = () => note(`This take has ended: ${beginAgain()}`);

  // The camera: one finger pans, two zoom and roll as well.
  const flying = makeFlying((move) => {
    if (isOver()) return tellOver();
    say({ type: "camera", ...move });
    play();
  });
  const fingers = new Map();

  function steer(event) {
    const { pointerId } = event;
    fingers.set(pointerId, where(event));
    return { ids: [],
      move(events) {
        const now = where(lastOf(events)), other = [...fingers].find(([id]) => id !== pointerId);
        flying.fly(flyOfFinger(fingers.get(pointerId), now, other && other[1], tall()));
        fingers.set(pointerId, now);
      },
      up() { fingers.delete(pointerId); } };
  }

  // What a press with this tool does: on a point, and beside it.
  function begin(event, at) {
    const way = event.shiftKey ? null : editable(), index = way === null ? null : nearestNode(points.get(way).nodes, at, reachOf(event) / 2);
    if (index !== null) return bend(at, way, index);
    let found = nearest(at, reachOf(event));
    if (found === null && tool === "select") found = nearestWay(at);        // elsewhere a line must not be in the way
    if (tool === "grid") return drawBox(event, at, true, (rectangle, large) => large ? fill(rectangle) : note(HINTS.grid));
    if (tool === "path") return draw(event, at, draft ? null : found);
    if (tool === "pin" || (event.shiftKey && tool !== "select"))
      return found !== null ? void turnPin(found) : add(event, at, "pin");
    if (found !== null) {
      if (tool === "select" && event.shiftKey) {
        chosen.delete(found) || chosen.add(found);
        return void refresh();
      }
      if (!chosen.has(found)) choose([found]);
      return grab(event, at, [...chosen]);
    }
    if (tool === "camera") return steer(event);
    if (tool === "select")
      return drawBox(event, at, false, (rectangle, large) => large ? chooseIn(rectangle, event.shiftKey) : choose([]));
    return add(event, at, "live");
  }

  function down(event) {
    if (!greeted || event.button > 0) return;
    event.preventDefault();
    box.focus({ preventScroll: true });
    cross = corner = null;
    if (isOver()) return tellOver();
    const hand = begin(event, where(event));
    refresh();
    if (!hand) return;
    try { top.setPointerCapture(event.pointerId); } catch { }
    hands.set(event.pointerId, hand);
    top.classList.toggle("dragging", !!hand.holds);
  }

  function move(event) {
    const hand = hands.get(event.pointerId), at = where(event);
    if (hand) {
      const events = event.getCoalescedEvents && event.getCoalescedEvents();
      return hand.move(events && events.length ? events : [event]);
    }
    rubber = event.pointerType === "touch" ? null : inside(at);
    over = event.pointerType === "touch" || tool === "grid" || draft ? null : nearest(at, reachOf(event));
    stale = true;
    top.classList.toggle("over", over !== null && tool !== "path");
  }

  function up(event) {
    const hand = hands.get(event.pointerId);
    if (!hand) return;
    hands.delete(event.pointerId);
    top.classList.toggle("dragging", [...hands.values()].some((other) => other.holds));
    hand.up(event);
    refresh();
  }

  top.addEventListener("pointerdown", down);
  top.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) top.addEventListener(kind, up);
  top.addEventListener("pointerleave", () => { over = rubber = null; stale = true; });
  top.addEventListener("dblclick", (event) => {
    const way = editable();
    if (way !== null && nearestWay(where(event)) === way) addNode(way, where(event));
  });
  top.addEventListener("contextmenu", (event) => event.preventDefault());
  top.addEventListener("wheel", (event) => {
    if (tool !== "camera") return;
    event.preventDefault();
    flying.fly({ zoom: -Math.max(-0.3, Math.min(0.3, event.deltaY * (event.deltaMode ? 0.03 : 0.001))) });
  }, { passive: false });

  // -- deeds: buttons and keys ---------------------------------------------------------------------------------------
  const acts = {
    toggle: () => runs(wanted) ? ask("stop", "ended") : ask("start", "playing"),
    hold: () => { if (runs(wanted)) wanted === "paused" ? ask("resume", "playing") : ask("pause", "paused"); },
    reset: () => { catchThem(); ask("reset", "opening"); },
    undo: () => { catchThem(); say({ type: "undo" }); },
    redo: () => { catchThem(); say({ type: "redo" }); },
    anchor: () => { if (runs()) say({ type: "anchor" }); },
    skip: () => { if (script) say({ type: "skip" }); },
    rest: () => {
      rest = !rest;
      say({ type: "rest", on: rest }, ["rest"]);
      note(rest ? "what no hand moves stays still" : "the rest is free");
    },
    help: () => openHelp(!helps()),
    look: () => { if (hello.map) { looking = !looking; say({ type: "look", on: looking }); maps.clear(); showMap(); } },
    gaze: () => { if (hello.gaze) { gazing = !gazing; askGaze(); gazes.clear(); showGaze(); } },
    file: () => {
      note(`making the ${EXPORTS[$(".what").value]}…`, false, 60);
      say({ type: "export", what: $(".what").value, mark: $(".tag").checked });
    },
    last: () => say({ type: "load", take: last }),
    change: () => say({ type: "model", name: $(".model").value }),
    bring: () => {
      const input = document.createElement("input");
      input.type = "file"; input.accept = ".json,.jsonl";
      input.onchange = () => {
        const [file] = input.files, busy = `opening ${file.name}…`;
        note(busy, false, 60);
        host.bring(file).then((why) => why ? note(why, true, 8) : hintText === busy && hush(),     // it may have more to say
          (error) => note(`The file could not be sent: ${error.message}`, true, 8));
      };
      input.click();
    },
    remove: () => {
      if (!chosen.size) return;
      if (node !== null) return removeNode(editable());
      catchThem([...chosen]);
      say({ type: "remove", ids: [...chosen] });
      for (const id of chosen) points.delete(id);
      choose([]);
    },
    pinAll: () => pinThem(true),
    freeAll: () => pinThem(false),
    finish: () => draft && finish(),
    unlay: () => { if (draft && (draft.nodes.pop(), !draft.nodes.length)) draft = null; },
    cancel: () => { draft = null; },
    smooth: () => changeWays(({ nodes }) => {
      const count = Math.min(hello.max_nodes, Math.max(nodes.length, Math.round(lastOf(nodes)[0] * WAY_RATE) + 1, 3));
      return { nodes: smoothed(byTime(nodes, count), Math.max(4, count >> 1)) };
    }),
    even: () => changeWays(({ nodes }) => ({ nodes: byLength(nodes,
      Math.min(hello.max_nodes, Math.max(nodes.length, Math.round(lastOf(nodes)[0] * WAY_RATE) + 1)), tall()) })),
  };

  const helps = () => $(".help").classList.contains("on");
  function openHelp(on) {
    $(".help").classList.toggle("on", on);
    $("[data-do=help]").setAttribute("aria-expanded", String(on));
  }

  function setTool(name) {
    tool = name; draft = corner = node = null; over = null;
    refresh();
  }

  root.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { do: deed, tool: toolName, keep: keeps, grip: whole, kind, loop, fly: part, sign } = button.dataset;
    if (deed) acts[deed]();
    if (toolName) setTool(toolName);
    if (keeps) keep = keeps;
    if (whole) { grip = whole === "yes"; say({ type: "grip", on: grip }, ["grip"]); }
    if (kind) gridKind = kind;
    if (loop) { wayLoop = loop; changeWays(() => ({ loop })); }
    if (part && event.detail === 0) flying.tap(part, Number(sign));         // by the keyboard: pointers hold
    if (event.detail > 0) box.focus({ preventScroll: true });               // so that Enter and Space are the stage's again
    refresh();
  });

  for (const button of all("[data-fly]")) {
    button.addEventListener("pointerdown", () => flying.hold(button, button.dataset.fly, Number(button.dataset.sign)));
    for (const kind of ["pointerup", "pointercancel", "pointerleave"])
      button.addEventListener(kind, () => flying.letGo(button));
  }
  $(".what").addEventListener("change", refresh);
  $(".model").addEventListener("change", () => { if (loading?.state === "failed") loading = null; showModels(); });
  $(".spacing").addEventListener("input", (event) => { spacing = event.target.value / 100; refresh(); });
  $(".speed").addEventListener("input", () => { sliding = true; refresh(); });
  $(".speed").addEventListener("change", (event) => {
    sliding = false; waySpeed = 2 ** event.target.value;
    changeWays(() => ({ speed: waySpeed }));
  });

  // The arrows: what is chosen moves; with nothing chosen, the cross does. A list that is open is scrolled.
  function arrow(x, y) {
    if (helps()) return $(".help").scrollBy(0, 2000 * y);
    if (draft || !chosen.size) {
      cross = inside(cross ? { x: cross.x + x, y: cross.y + y } : { x: 0.5, y: 0.5 });
      return note(`Cross: ${spell(cross)}`, false, 2);
    }
    if (node !== null) {
      const id = editable(), [, nx, ny] = points.get(id).nodes[node];
      moveNode(id, node, { x: nx + x, y: ny + y });
      edit(id, points.get(id).nodes, node);
      return tellNode();
    }
    const t = performance.now(), ids = [...chosen].filter((id) => points.has(id));
    catchThem(ids);
    say({ type: "grab", ids, t });
    for (const id of ids) { const p = points.get(id); putPoint(id, { x: p.x + x, y: p.y + y }, t + 1); }
    sendSamples();
    say({ type: "release", ids, t: t + 2, keep: true });
    play();
  }

  // What a click would do, where the cross is; of a box, one corner and then the other. On a chosen node: one more.
  function useCross() {
    if (node !== null) return addNodeBehind(editable());
    if (!cross) cross = { x: 0.5, y: 0.5 };
    const event = { timeStamp: performance.now(), type: "pointerup" };
    if (isOver()) return tellOver();
    if (tool === "grid" || tool === "select") {
      if (!corner) { corner = cross; return; }
      const rectangle = boxOf(corner, cross);
      corner = null;
      return tool === "grid" ? fill(rectangle) : chooseIn(rectangle);
    }
    if (tool === "camera") return;
    const hand = begin(event, cross);
    if (hand && tool === "path") hand.up(event);
  }

  function chooseNext(step) {
    const ids = [...points.keys()].sort((a, b) => a - b), at = ids.indexOf([...chosen][0]);
    if (!ids.length) return note("There is no point yet: press on a thing, or I where the cross is.");
    const next = (at < 0 ? (step > 0 ? 0 : ids.length - 1) : at + step + ids.length) % ids.length, p = points.get(ids[next]);
    choose([ids[next]]);
    note(`${{ live: "Handle", pin: "Pin", path: "Path" }[p.kind]}, ${next + 1} of ${ids.length}: ${spell(placeOf(p))}`, false, 3);
  }

  // A node of the chosen path, or else of the first there is: the next one, or the one before; after the last the first.
  function chooseNode(step) {
    if (draft) return;
    const id = chosenWays()[0] ?? [...points.keys()].sort((a, b) => a - b).find((one) => points.get(one).nodes);
    if (id === undefined) return note("There is no path yet: draw one with the path tool (3).");
    const at = editable() === id ? node : null, count = points.get(id).nodes.length;
    if (tool !== "select") setTool("select");
    choose([id]);
    node = at === null ? (step > 0 ? 0 : count - 1) : (at + step + count) % count;
    tellNode();
  }

  const spell = ({ x, y }) => `${Math.round(100 * x)} % across, ${Math.round(100 * y)} % down`;

  // Said where a screen reader hears it.
  function tellNode() {
    if (node === null) return;
    const { nodes } = points.get(editable());
    note(`Node ${node + 1} of ${nodes.length}: ${spell(spotOf(nodes[node]))}`, false, 3);
  }

  function escape() {
    if (draft) draft = null;
    else if (node !== null) node = null;
    else { chosen.clear(); cross = corner = null; }
    openHelp(false);
  }

  const WRITES = "input, textarea, select, [contenteditable=true], [role=listbox], [role=option]";
  const PRESSED = ["Enter", " ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];         // what a button may want itself

  function key(event) {
    const asChord = event.metaKey || (event.ctrlKey && !event.altKey), nodeStep = asChord ? 0 : { "]": 1, "[": -1 }[event.key];
    if (!greeted || event.defaultPrevented || (event.altKey && !nodeStep)) return;      // some keyboards have [ and ] on Alt
    const target = event.composedPath()[0], within = event.composedPath().includes(box);
    if (!within && (!host.everywhere || target.closest?.(WRITES))) return;
    if (!within && target.closest?.("button, a") && PRESSED.includes(event.key)) return;
    if (within && target.closest?.("select, input")) return;
    if (within && target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return;
    const step = event.shiftKey ? 0.1 : 0.02, chord = event.ctrlKey || event.metaKey, letter = event.key.toLowerCase();
    const toward = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    const flight = chord ? null : FLY_KEYS[letter], number = chord ? null : Object.keys(TOOLS)[event.key - 1];
    const everything = () => choose(points.keys());
    const deed = nodeStep ? () => chooseNode(nodeStep)
      : chord ? { z: event.shiftKey ? acts.redo : acts.undo, y: acts.redo, a: within && everything }[letter]
      : flight ? () => flying.hold(event.code, ...flight)
      : number ? () => setTool(number)
      : toward ? (within || chosen.size) && (() => arrow(...toward))
      : { enter: draft ? finish : acts.toggle, " ": acts.hold, delete: draft ? acts.unlay : acts.remove,
        backspace: draft ? acts.unlay : acts.remove, escape, end: script && acts.skip, n: acts.anchor, h: acts.rest,
        m: acts.look, i: useCross, "?": acts.help,
        ".": () => chooseNext(1), ",": () => chooseNext(-1), g: acts.gaze }[letter];
    if (!deed) return;
    event.preventDefault(); event.stopPropagation();
    if (event.repeat && !toward) return;
    deed();
    refresh();
  }
  const keyUp = (event) => event.key === "Meta" ? flying.stop() : flying.letGo(event.code), letAll = () => flying.stop();
  const ears = host.everywhere ? document : box;
  ears.addEventListener("keydown", key);
  ears.addEventListener("keyup", keyUp);
  addEventListener("blur", letAll);

  const leaveTheme = followTheme(box, !host.everywhere), watcher = new ResizeObserver(resize);
  watcher.observe(screen);

  const api = {
    stats, points, chosen, kept, maps, gazes, host, latencies,
    ways: { ruler: wayRuler, at: wayAt },
    get state() { return state; },
    get hello() { return hello; },
    get current() { return current; },
    get tool() { return tool; },
    get draft() { return draft; },
    get node() { return node; },
    get cross() { return cross; },
    say,
    get prompt() { return prompt; },
    follow: (prompt) => say({ type: "say", prompt }),
    open(image, prompt, seed) {
      const wish = { type: "open", image, prompt, seed };
      if (greeted) say(wish); else wished = wish;
    },
    ...acts,
    // The pixels of a frame this page received (the shown one unless told): {width, height, data} with data RGBA.
    async pixels(f = current) {
      const bitmap = await createImageBitmap(f.blob), c = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      c.drawImage(bitmap, 0, 0);
      return c.getImageData(0, 0, bitmap.width, bitmap.height);
    },
    close() {
      watcher.disconnect(); leaveTheme();
      ears.removeEventListener("keydown", key); ears.removeEventListener("keyup", keyUp);
      removeEventListener("blur", letAll);
      host.close();
    },
  };
  el.mskStage = api;
  el.classList.add("msk-stage-host");
  resize(); refresh();
  host.connect({ word, frame, lost });
  requestAnimationFrame(tick);
  return api;
}
