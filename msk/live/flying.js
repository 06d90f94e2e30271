// The hand on the camera: keys and buttons that are held, fingers on the ground. Plain script, before stage.js.
//
// What is asked for is gathered and sent some times a second: `ask(move)` with right, down (in widths), zoom (doublings),
// roll, orbit (degrees) and dolly; see flight.py.

const FLY_RATE = { right: 0.35, down: 0.35, zoom: 0.7, roll: 30, orbit: 15, dolly: 0.35 };      // a second, while held
const FLY_TAP = 0.15, FLY_WAIT = 220, FLY_EVERY = 60;    // seconds that a tap is worth; milliseconds

function makeFlying(ask) {
  const waiting = Object.fromEntries(Object.keys(FLY_RATE).map((part) => [part, 0]));
  const held = new Map();             // key or button -> {part, sign, since}
  let sentAt = 0, tickedAt = 0;
  return {
    fly(move) { for (const part in move) waiting[part] += move[part]; },
    tap(part, sign) { waiting[part] += sign * FLY_TAP * FLY_RATE[part]; },
    hold(what, part, sign) {
      if (held.has(what)) return;
      held.set(what, { part, sign, since: performance.now() });
      this.tap(part, sign);
    },
    letGo(what) { held.delete(what); },
    stop() { held.clear(); for (const part in waiting) waiting[part] = 0; },
    tick(now) {
      const seconds = Math.min(0.1, (now - tickedAt) / 1000);
      tickedAt = now;
      for (const { part, sign, since } of held.values())
        if (now - since > FLY_WAIT) waiting[part] += sign * seconds * FLY_RATE[part];
      if (now - sentAt < FLY_EVERY || !Object.values(waiting).some((amount) => Math.abs(amount) > 1e-5)) return;
      sentAt = now;
      ask({ ...waiting });
      for (const part in waiting) waiting[part] = 0;
    },
  };
}

// A finger on the ground goes from `before` to `now`; with `other`, a second one that rests, it zooms and rolls as well.
function flyOfFinger(before, now, other, tall) {
  const share = other ? 0.5 : 1, move = { right: share * (before.x - now.x), down: share * (before.y - now.y) * tall };
  if (!other) return move;
  const [a, b] = [before, now].map((p) => ({ x: p.x - other.x, y: (p.y - other.y) * tall }));
  const from = Math.hypot(a.x, a.y), to = Math.hypot(b.x, b.y);
  if (from < 0.01 || to < 0.01) return move;
  const turn = Math.asin(Math.min(1, Math.max(-1, (a.x * b.y - a.y * b.x) / (from * to))));
  return { ...move, zoom: Math.log2(to / from), roll: turn * 180 / Math.PI };
}
