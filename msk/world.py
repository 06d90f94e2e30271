"""The procedural world: clips whose every point can be tracked exactly, drawn and moved by closed formulas.

A scene is a stack of layers, the background and a few things upon it. Each layer is a picture in its own canonical square
[-1, 1]^2 and an exactly invertible map to the screen: bend (two shears), place (rotate, scale, shift), look (camera with
parallax). Rendering runs the map backwards, tracking runs it forwards; nothing is estimated.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Geometry
from .text import SPECKS
from .tracks import Tracks

HELD_OUT = 1_000_000            # seeds from here on are for evaluation only: no training touches them
KINDS = ("fish", "bird", "balloon", "leaf", "boat", "butterfly", "kite", "star", "blob", "turtle", "jellyfish", "flower")
COLOURS = {"red": (.86, .22, .20), "orange": (.95, .55, .16), "yellow": (.96, .83, .28), "green": (.30, .66, .32),
           "teal": (.14, .62, .62), "blue": (.22, .42, .84), "purple": (.55, .34, .76), "pink": (.95, .56, .69),
           "white": (.94, .94, .91), "brown": (.55, .37, .23)}
TEXTURES = ("plain", "striped", "spotted", "checked", "marbled")
PLACES = {"sea": ((.16, .46, .66), (.08, .26, .46)), "sky": ((.52, .74, .93), (.80, .89, .95)),
          "meadow": ((.62, .76, .42), (.38, .58, .28)), "sand": ((.89, .80, .60), (.79, .66, .45)),
          "forest": ((.26, .42, .31), (.13, .25, .19)), "hills": ((.78, .85, .90), (.50, .64, .58))}
EVENTS = {"": "", "snow": "snow falling", "rain": "rain falling", "bubbles": "bubbles rising", "ripples": "ripples running",
          "flicker": "flickering light", "night": "night falls", "day": "day breaks", "fireflies": "fireflies glowing",
          "grass": "swaying grass"}
SPRITE, CANVAS = 64, 160        # pixels of a thing's picture; of a background's, which spans CANVAS_SPAN units
CANVAS_SPAN, SPRITE_SPAN = 1.7, 1.12        # half of what the picture covers, in canonical units


# --- pictures -----------------------------------------------------------------------------------------------------

def _ellipse(u, v, cu, cv, ru, rv):
    return (((u - cu) / ru).square() + ((v - cv) / rv).square()).clamp_min(1e-9).sqrt().sub(1) * min(ru, rv)


def _star(u, v, points: int, radius: float, depth: float, sharp: float = 1.0):
    angle, r = torch.atan2(u, -v), (u.square() + v.square()).clamp_min(1e-9).sqrt()
    wave = (points * angle).cos()
    return (r - radius - depth * wave.sign() * wave.abs() ** sharp) * 0.8


def _shape(kind: str, u: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, list[tuple[Tensor, tuple[float, float, float]]]]:
    """Signed distance (negative inside) of one kind of thing in [-1, 1]^2, and painted details (distance, colour).

    u, v [1, S, S]; p [n, 8] in [0, 1] varies the build. Things look toward +u, up is -v.
    """
    least, most = torch.minimum, torch.maximum
    a, b = p[:, 0, None, None], p[:, 1, None, None]
    dark, light = (.10, .09, .12), (.97, .96, .93)
    if kind == "fish":
        body = (((u - .14) / .62).square() + (v / (.28 + .12 * a)).square()).clamp_min(1e-9).sqrt().sub(1) * .3
        tail = most(v.abs() - (-.30 - u) * (.62 + .3 * b), -.92 - u - .22 * (1 - (v * 2.2).square()).clamp_min(0))
        fin = _ellipse(u, v, .02, -.33, .26, .15)
        return least(least(body, tail), fin), [(_ellipse(u, v, .50, -.08, .11, .11), light),
                                               (_ellipse(u, v, .53, -.08, .055, .055), dark),
                                               ((u - .26).abs() + (v.abs() - .16).clamp_min(0) - .018, dark)]
    if kind == "bird":
        body = _ellipse(u, v, .02, .10, .52, .24)
        head = _ellipse(u, v, .52, -.10, .21, .20)
        beak = most((v + .08).abs() - (.94 - u) * .35, .64 - u)
        wing = most(_ellipse(u, v, -.10, -.30, .30, .55), u - .34)
        tail = most((v - .06).abs() - .06 - (-.36 - u) * .45, most(u + .36, -.88 - u))
        return least(least(least(body, head), least(wing, beak)), tail), [
            (beak, (.95, .62, .15)), (_ellipse(u, v, .58, -.14, .055, .055), dark),
            ((_ellipse(u, v, -.10, -.30, .30, .55).abs() - .02), dark)]
    if kind == "balloon":
        ball = _ellipse(u, v, 0, -.28, .50, .60)
        knot = most(u.abs() - (v - .26) * .6, v - .42)
        string = most((u - .06 * (9 * v).sin()).abs() - .035, most(.30 - v, v - .96))
        return least(least(ball, most(knot, .26 - v)), string), [(_ellipse(u, v, -.18, -.52, .10, .17), light)]
    if kind == "leaf":
        blade = (v.abs() - (.34 + .16 * a) * (1 - (u / .86).square())) * .8
        stem = most(v.abs() - .04, most(u + .60, -.97 - u))
        return least(blade, stem), [(most(v.abs() - .022, u.abs() - .74), (.20, .30, .14)),
                                    (most(((v.abs() * 1.3 - u * .8 + .02) * 9).sin().abs() * .12 - .022, blade + .05),
                                     (.20, .30, .14))]
    if kind == "boat":
        hull = most(most(.28 - v, v - .66), u.abs() - .86 + (v - .28) * .65)
        mast = most(u.abs() - .035, most(-.90 - v, v - .30))
        sail = most(most(.05 - u, u - (v + .92) * (.45 + .2 * a)), v - .16)
        jib = most(most(u + .07, -u - (v + .72) * .55), v - .16)
        return least(least(hull, mast), least(sail, jib)), [(hull, (.45, .29, .18)), (mast, (.32, .22, .15)),
                                                            (most(hull, (v - .36).abs() - .03), light)]
    if kind == "butterfly":
        upper = _ellipse(u.abs(), v, .45, -.30, .42, .44)
        lower = _ellipse(u.abs(), v, .34, .38, .30, .34)
        body = _ellipse(u, v, 0, .02, .085, .62)
        feelers = most((u.abs() - (-v - .5) * .5).abs() - .025, most(-.92 - v, v + .5))
        return least(least(upper, lower), least(body, feelers)), [
            (least(body, feelers), dark), (_ellipse(u.abs(), v, .52, -.34, .15, .17), light)]
    if kind == "kite":
        cloth = (u.abs() / .58 + (v + .22).abs() / torch.where(v < -.22, .62, .72) - 1) * .4
        tail = most((u - .10 * (11 * v).sin()).abs() - .045, most(.45 - v, v - .98))
        return least(cloth, tail), [(most(cloth, u.abs() - .028), dark), (most(cloth, (v + .22).abs() - .028), dark)]
    if kind == "star":
        return _star(u, v, 5, .58, .30, .8), [(_ellipse(u, v, -.13, -.06, .07, .10), dark),
                                              (_ellipse(u, v, .13, -.06, .07, .10), dark),
                                              (most(_ellipse(u, v, 0, .08, .17, .15).abs() - .03, .10 - v), dark)]
    if kind == "blob":
        angle, r = torch.atan2(v, u), (u.square() + v.square()).clamp_min(1e-9).sqrt()
        waves = sum(.20 / j * p[:, j, None, None] * (j * angle + 6.28 * p[:, 8 - j, None, None]).cos() for j in (2, 3, 4))
        return r - .62 - 1.3 * waves, []
    if kind == "turtle":
        shell = _ellipse(u, v, -.05, 0, .56, .48)
        legs = _ellipse(u.abs(), v.abs(), .40, .48, .20, .17)
        head = _ellipse(u, v, .68, 0, .24, .19)
        return least(least(shell, head), legs), [(least(head, legs), (.42, .60, .30)), (shell, None),
                                                 (_ellipse(u, v, .77, -.09, .05, .05), dark),
                                                 (_ellipse(u, v, .77, .09, .05, .05), dark),
                                                 (_ellipse(u, v, -.05, 0, .34, .28).abs() - .025, dark)]
    if kind == "jellyfish":
        dome = most(_ellipse(u, v, 0, -.20, .62, .58), v - .12)
        arms = most((u * 11).cos().abs() * .10 - .045, most(most(-.05 - v, v - .86), u.abs() - .50))
        return least(dome, arms), [(_ellipse(u.abs(), v, .20, -.12, .08, .10), dark)]
    petals = _star(u, v, 6, .60, .26, .7)                                                           # flower
    return petals, [(_ellipse(u, v, 0, 0, .24, .24), (.96, .78, .22)), (_ellipse(u, v, 0, 0, .24, .24).abs() - .02, dark)]


def _texture(which: Tensor, u: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """[n] texture index -> [n, S, S] in [0, 1]: where the second colour shows."""
    turn = (p[:, 5] * math.pi)[:, None, None]
    x, y = u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin()
    k = (5 + 5 * p[:, 6])[:, None, None]
    sharp = lambda s: torch.sigmoid(8 * s)
    swirl = (k * (x + .25 * (4 * y + 6 * p[:, 7, None, None]).sin()) + 2 * (3 * y).cos()).sin()
    kinds = torch.stack([.12 + 0 * x, sharp((k * 1.4 * x).sin()), sharp((k * x).sin() * (k * y).sin() - .35),
                         sharp((k * .8 * x).sin() * (k * .8 * y).sin() * 3), sharp(.8 * swirl)])    # [5, n, S, S]
    return kinds[which, torch.arange(len(which), device=which.device)]


def _sprites(kind: Tensor, colour: Tensor, texture: Tensor, light: Tensor, shade: Tensor, p: Tensor) -> Tensor:
    """Pictures [n, 5, S, S]: premultiplied red, green, blue, opacity with the soft shadow, opacity of the thing itself."""
    device, n = kind.device, len(kind)
    line = (torch.arange(SPRITE, device=device) + .5) / SPRITE * 2 - 1
    v, u = torch.meshgrid(line * SPRITE_SPAN, line * SPRITE_SPAN, indexing="ij")
    u, v = u[None], v[None]                                                                         # [1, S, S]
    edge = 2.2 / SPRITE
    inside = lambda d: torch.sigmoid(-d / (edge * .45))
    distance = torch.zeros(n, SPRITE, SPRITE, device=device)
    paint = torch.zeros(n, 3, SPRITE, SPRITE, device=device)
    base, second = colour[:, 0, :, None, None], colour[:, 1, :, None, None]
    skin = base + (second - base) * _texture(texture, u, v, p)[:, None]
    for i, name in enumerate(KINDS):
        at = (kind == i).nonzero()[:, 0]
        if not len(at):
            continue
        d, details = _shape(name, u, v, p[at])
        distance[at] = d.expand(len(at), -1, -1)
        picture = skin[at]
        for e, ink in details:
            rgb = skin[at] if ink is None else torch.tensor(ink, device=device)[None, :, None, None]
            m = inside(e).expand(len(at), -1, -1)[:, None]
            picture = picture * (1 - m) + rgb * m
        paint[at] = picture
    bulge = (light[:, 0, None, None] * u + light[:, 1, None, None] * v)                             # lit from one side
    rim = torch.sigmoid((distance + .10) / .05)
    paint = (paint * (1 + .28 * bulge - .30 * rim)[:, None]).clamp(0, 1)
    solid = inside(distance)
    # the shadow is part of the picture, so it is thrown from the pose of the first frame
    du, dv = (shade[:, 0] / SPRITE_SPAN, shade[:, 1] / SPRITE_SPAN)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 2], theta[:, 1, 2] = -du, -dv
    soft = F.avg_pool2d(F.avg_pool2d(solid[:, None], 7, 1, 3), 7, 1, 3)
    cast = F.grid_sample(soft, F.affine_grid(theta, soft.shape, align_corners=False), align_corners=False)[:, 0]
    opacity = solid + .38 * cast * (1 - solid)
    return torch.cat([paint * solid[:, None], opacity[:, None], solid[:, None]], dim=1)


def _noise(n: int, size: int, cells: int, g: torch.Generator) -> Tensor:
    """Smooth noise [n, 1, size, size], about unit variance."""
    x = torch.randn(n, 1, cells, cells, generator=g, device=g.device)
    return F.interpolate(x, (size, size), mode="bicubic", align_corners=False)


def _backgrounds(place: Tensor, strength: Tensor, g: torch.Generator) -> Tensor:
    """Background pictures [n, 3, CANVAS, CANVAS]."""
    n, device = len(place), place.device
    line = (torch.arange(CANVAS, device=device) + .5) / CANVAS * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    palette = torch.tensor(list(PLACES.values()), device=device)[place]                              # [n, 2, 3]
    palette = (palette + .06 * torch.randn(n, 1, 3, generator=g, device=device)).clamp(.04, .96)
    top, bottom = palette[:, 0, :, None, None], palette[:, 1, :, None, None]
    picture = top + (bottom - top) * ((y[None] + 1) / 2)[:, None]
    broad, middle, fine = _noise(n, CANVAS, 5, g), _noise(n, CANVAS, 12, g), _noise(n, CANVAS, 36, g)
    phase = 6.28 * torch.rand(n, 4, 1, 1, generator=g, device=device)
    flat = strength[:, None, None, None]
    for i, name in enumerate(PLACES):
        at = (place == i).nonzero()[:, 0]
        if not len(at):
            continue
        b, m, f, p = broad[at], middle[at], fine[at], phase[at]
        if name == "sea":
            pattern = .7 * torch.sin(22 * y + 2.5 * b[:, 0] + p[:, 0])[:, None] * .5 + .5 * m
        elif name == "sky":
            pattern = 1.4 * torch.sigmoid(2.5 * (b + .4 * m)) - .5
        elif name == "meadow":
            pattern = .5 * b + .5 * m + .45 * f
        elif name == "sand":
            pattern = .6 * torch.sin(16 * (y + .3 * x) + 2 * b[:, 0] + p[:, 1])[:, None] + .4 * f
        elif name == "forest":
            pattern = torch.sin(20 * x + 1.5 * b[:, 0] + p[:, 2])[:, None] * .8 + .5 * m
        else:
            pattern = sum(torch.sigmoid(30 * (y - level - .10 * torch.sin(w * x + p[:, j])))[:, None]
                          for j, (level, w) in enumerate(((-.2, 5), (.15, 7), (.5, 4)))) * -1.1 + 1 + .25 * m
        picture[at] = picture[at] * (1 + flat[at] * pattern)
    return picture.clamp(0, 1)


# --- motion -------------------------------------------------------------------------------------------------------

def _walk(n: int, frames: int, speed: Tensor, aim: Tensor, g: torch.Generator, kinds=(.55, .15, .12, .18)) -> Tensor:
    """Paths [n, frames, 2] from 0, as hands make them: smooth curves, stop-and-go, jerks, holds.

    speed [n] in units a frame; aim [n, 2] is where the first step heads.
    """
    device = g.device
    rand = lambda *s: torch.rand(*s, generator=g, device=device)
    time = torch.arange(frames, device=device)[None]                                                 # [1, T]
    style = torch.multinomial(torch.tensor(kinds, device=device), n, True, generator=g)[:, None]
    smooth = .75 + .45 * torch.sin(time * (.05 + .12 * rand(n, 1)) + 6.28 * rand(n, 1))
    go = torch.sigmoid(9 * torch.sin(time * (.12 + .22 * rand(n, 1)) + 6.28 * rand(n, 1)))           # stop and go
    jerk = .15 + 2.4 * torch.exp(-((time - frames * rand(n, 1)) / 3.5).square())
    pace = torch.where(style == 0, smooth, torch.where(style == 1, 1.3 * go, torch.where(style == 2, jerk, 0.)))
    turn = (torch.randn(n, 1, generator=g, device=device) * .035
            + .06 * torch.sin(time * (.06 + .10 * rand(n, 1)) + 6.28 * rand(n, 1)))
    heading = torch.atan2(aim[:, 1:], aim[:, :1]) + .9 * torch.randn(n, 1, generator=g, device=device) + turn.cumsum(1)
    step = speed[:, None] * pace
    path = torch.stack([step * heading.cos(), step * heading.sin()], dim=-1).cumsum(1)
    return path - path[:, :1]


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    c, s = angle.cos(), angle.sin()
    return c * x - s * y, s * x + c * y


@dataclass(frozen=True)
class Scene:
    """B scenes of K things (slot K is nearest) over T frames. Units: the frame is [-1, 1] both ways, x right, y down.

    centre [B, T, K, 2]; size, turn [B, T, K]; bend [B, K, 6] (amplitude, wave number, rate of each of two shears);
    depth [B, K + 1] parallax factors, background first; pan [B, T, 2]; zoom, roll [B, T]; there [B, K] bool.
    """
    geometry: Geometry
    sprites: Tensor             # [B, K, 5, S, S]
    canvas: Tensor              # [B, 3, CANVAS, CANVAS]
    centre: Tensor
    size: Tensor
    turn: Tensor
    bend: Tensor
    depth: Tensor
    pan: Tensor
    zoom: Tensor
    roll: Tensor
    there: Tensor
    event: Tensor               # [B] index into EVENTS
    dice: Tensor                # [B, 96] uniform numbers for the events

    @property
    def frames(self) -> int:
        return self.pan.shape[1]

    def part(self, which: slice | list[int]) -> Scene:
        """Some of the scenes alone."""
        return replace(self, **{f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "geometry"})

    def when(self, frames: list[int]) -> Scene:
        """Some of its frames alone. What bends does so as if they followed each other: let stiff scenes be looked at so."""
        names = ("centre", "size", "turn", "pan", "zoom", "roll")
        return replace(self, **{name: getattr(self, name)[:, frames] for name in names})

    def quiet(self) -> Scene:
        """The same things on the same paths, seen by a still camera, and no event."""
        return replace(self, pan=0 * self.pan, roll=0 * self.roll, zoom=torch.ones_like(self.zoom), event=0 * self.event)

    def without(self, things: Tensor) -> Scene:
        """The same scenes, but for some of their things, [B, K] bool."""
        return replace(self, there=self.there & ~things)

    def opacity(self, things: Tensor) -> Tensor:
        """How much some things, [B, K] bool, and their shadows hide of what is seen without them: [B, T, H, W] in [0, 1]."""
        g, places = self.geometry, self._places()
        line = lambda n: (torch.arange(n, device=self.pan.device) + .5) / n * 2 - 1
        x, y = line(g.width)[None, None, None], line(g.height)[None, None, :, None]                 # [1, 1, H or 1, W or 1]
        hides = torch.zeros(*self.pan.shape[:2], g.height, g.width, device=self.pan.device)
        for k in range(self.sprites.shape[1]):
            at = torch.stack(self._to_canonical(x, y, k + 1, places), dim=-1).flatten(1, 2) / SPRITE_SPAN
            here = F.grid_sample(self.sprites[:, k, 3:4], at, align_corners=False)[:, 0].view_as(hides)
            here = here * self.there[:, k, None, None, None]
            hides = torch.where(things[:, k, None, None, None], 1 - (1 - hides) * (1 - here), hides * (1 - here))
        return hides

    def hurried(self, generator: torch.Generator, fastest: float = 0.11) -> Scene:
        """The same things as a hand may drag them: each on a straight line through where it is in mid-clip, up to `fastest`
        half frames in one frame (seven pixels of 128)."""
        B, T, K, _ = self.centre.shape
        device = self.centre.device
        angle = 2 * math.pi * torch.rand(B, 1, K, generator=generator, device=device)
        speed = fastest * torch.rand(B, 1, K, generator=generator, device=device)
        step = torch.stack([angle.cos(), angle.sin()], dim=-1) * speed[..., None]
        time = torch.arange(T, device=device).view(1, T, 1, 1) - T // 2
        return replace(self, centre=self.centre[:, T // 2:T // 2 + 1] + step * time)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each layer stands on the screen: scale and angle [B, T, K + 1], offset [B, T, K + 1, 2].

        screen = scale * rotation(angle) (canonical, bent) + offset; the background is layer 0.
        """
        d = self.depth[:, None]                                                                     # [B, 1, K + 1]
        zoom = self.zoom[..., None] ** d
        size, turn = F.pad(self.size, (1, 0), value=1.), F.pad(self.turn, (1, 0))
        away = F.pad(self.centre, (0, 0, 1, 0)) - self.pan[:, :, None] * d[..., None]
        x, y = _rotate(*away.unbind(-1), self.roll[..., None])
        return zoom * size, turn + self.roll[..., None], torch.stack([x, y], dim=-1) * zoom[..., None]

    # The maps of one layer. x, y broadcast to [B, T, ...]; `places` as above; `bend` broadcasts to [B, T, ..., 6].

    def _bend(self, u, v, bend, back: bool):
        """The thing's own flexing, two shears: exactly invertible."""
        t = torch.arange(self.frames, device=u.device, dtype=u.dtype).reshape(-1, *[1] * (u.ndim - 2))
        a, ka, wa, b, kb, wb = bend.unbind(-1)
        beat = lambda u: a * (.5 - .5 * u).clamp(0, 1.1) * torch.sin(ka * u + wa * t)              # stronger at the tail
        sway = lambda v: b * torch.sin(kb * v + wb * t)
        if back:
            u = u - sway(v)
            return u, v - beat(u)
        v = v + beat(u)
        return u + sway(v), v

    def _to_canonical(self, x, y, layer: int, places):
        """Screen to the canonical square of a layer. x, y [B or 1, T or 1, ...]."""
        scale, angle, offset = places
        wide = lambda z: z[:, :, layer].reshape(*z.shape[:2], *[1] * (x.ndim - 2))
        c, s = wide(angle.cos() / scale), wide(angle.sin() / scale)
        ox, oy = wide(offset[..., 0]), wide(offset[..., 1])
        u, v = c * x + (s * y - (c * ox + s * oy)), (s * ox - c * oy + c * y) - s * x
        if layer == 0:
            return u, v
        return self._bend(u, v, self.bend[:, layer - 1].reshape(-1, 1, *[1] * (x.ndim - 2), 6), back=True)

    def _to_screen(self, u, v, layer, places):
        """Canonical points [B, M] of their layers [B, M] -> screen x, y [B, T, M]."""
        frames = lambda z: z[:, None].expand(-1, self.frames, -1)
        bend = torch.gather(F.pad(self.bend, (0, 0, 1, 0)), 1, layer[..., None].expand(-1, -1, 6))[:, None]
        u, v = self._bend(frames(u), frames(v), bend, back=False)
        scale, angle, ox, oy = (torch.gather(z, 2, frames(layer)) for z in (*places[:2], *places[2].unbind(-1)))
        x, y = _rotate(u * scale, v * scale, angle)
        return x + ox, y + oy

    def _solid(self, x, y, k: int, places):
        """Opacity of thing k at screen points [B, T, M]."""
        grid = torch.stack(self._to_canonical(x, y, k + 1, places), dim=-1) / SPRITE_SPAN           # [B, T, M, 2]
        return F.grid_sample(self.sprites[:, k, 4:], grid, align_corners=False)[:, 0] * self.there[:, k, None, None]

    def _grass(self, x, y):
        """Opacity of the swaying grass at screen points x, y [B or 1, T or 1, ...], nearest of all."""
        lead = [1] * (x.ndim - 2)
        t = torch.arange(self.frames, device=x.device).reshape(1, -1, *lead)
        d = self.dice[:, :4].T.reshape(4, -1, 1, *lead)
        height = 1 - y
        at = x - .35 * torch.sin(.22 * t + 6.28 * d[0] + 1.5 * x) * height
        comb = .16 * torch.sin(17 * at + 6.28 * d[2]).abs() + .10 * torch.sin(29 * at + 6.28 * d[3]).abs()
        blades = .10 + .12 * d[1] + comb
        return torch.sigmoid((blades - height) * 26) * self._is("grass").reshape(-1, 1, *lead)

    @torch.no_grad()
    def render(self) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1]."""
        if self.pan.device.type == "cpu":                    # one clip at a time stays in the processor's cache
            return torch.cat([self.part(slice(b, b + 1))._render() for b in range(len(self.pan))])
        return self._render()

    def _render(self) -> Tensor:
        g, places = self.geometry, self._places()
        line = lambda n: (torch.arange(n, device=self.pan.device) + .5) / n * 2 - 1
        x, y = line(g.width)[None, None, None], line(g.height)[None, None, :, None]                 # [1, 1, H or 1, W or 1]
        sample = lambda picture, uv, **k: F.grid_sample(picture, torch.stack(uv, dim=-1).flatten(1, 2), align_corners=False,
                                                        **k).unflatten(2, (self.frames, g.height))  # [B, C, T, H, W]
        uv = self._to_canonical(x, y, 0, places)
        picture = sample(self.canvas, [z / CANVAS_SPAN for z in uv], padding_mode="reflection")
        if self._is("ripples").any():
            picture = picture + self._ripples(x, y)[:, None]
        for k in range(self.sprites.shape[1]):
            if not self.there[:, k].any():
                continue
            uv = self._to_canonical(x, y, k + 1, places)
            layer = sample(self.sprites[:, k, :4], [z / SPRITE_SPAN for z in uv]) * self.there[:, k, None, None, None, None]
            picture = torch.addcmul(layer[:, :3], picture, 1 - layer[:, 3:])
        if self._is("grass").any():
            blades = self._grass(x, y)[:, None]
            green = torch.tensor([.20, .44, .16], device=x.device)[None, :, None, None, None] * (1.25 - .5 * y[:, None])
            picture = picture + (green - picture) * blades
        return self._weather(picture.transpose(1, 2)).clamp(0, 1)                                   # [B, T, 3, H, W]

    def _is(self, name: str) -> Tensor:
        return (self.event == list(EVENTS).index(name))

    @property
    def clear(self) -> Tensor:
        """[B] bool: no specks in the air."""
        return ~sum(self._is(name) for name in SPECKS).bool()

    def _ripples(self, x, y):
        t = torch.arange(self.frames, device=x.device)[None, :, None, None]
        d = self.dice[:, :2].T.reshape(2, -1, 1, 1, 1)
        r = ((x - d[0] * 2 + 1).square() + (y - d[1] * 2 + 1).square()).sqrt()
        return .13 * torch.sin(16 * r - .55 * t) * torch.exp(-.8 * r) * self._is("ripples")[:, None, None, None]

    def _weather(self, frames: Tensor) -> Tensor:
        """What no track can say: specks in the air, and the light."""
        B, T, _, H, W = frames.shape
        device = frames.device
        t = torch.arange(T, device=device)[None, :, None]                                           # [1, T, 1]
        d = self.dice[:, None]
        px, py, pv = d[..., :24], d[..., 24:48], d[..., 48:72]                                      # [B, 1, 24]
        air = self._is("snow") | self._is("rain") | self._is("bubbles") | self._is("fireflies")
        if air.any():
            which = lambda *v: sum(self._is(n)[:, None, None] * s for n, s in v)
            fall = which(("snow", .020), ("rain", .040), ("bubbles", -.018), ("fireflies", 0.)) * (.7 + .6 * pv)
            drift = which(("snow", .06), ("bubbles", .04), ("fireflies", .14)) * torch.sin(.13 * t + 40 * pv)
            cx = (px + drift) * 2 - 1                                                                # [B, T, 24]
            cy = torch.remainder(py + fall * t + which(("fireflies", .10)) * torch.sin(.11 * t + 60 * px), 1) * 2.2 - 1.1
            wide = which(("snow", .045), ("rain", .030), ("bubbles", .055), ("fireflies", .05)) + 1e-3
            tall = which(("snow", .045), ("rain", .12), ("bubbles", .055), ("fireflies", .05)) + 1e-3
            glow = which(("snow", .9), ("rain", .8), ("bubbles", .45)) + which(("fireflies", .9)) * (
                .5 + .5 * torch.sin(.25 * t + 30 * pv))
            line = lambda n: (torch.arange(n, device=device) + .5) / n * 2 - 1
            gx = torch.exp(-((line(W) - cx[..., None]) / wide[..., None]).square())                  # [B, T, 24, W]
            gy = torch.exp(-((line(H) - cy[..., None]) / tall[..., None]).square()) * glow[..., None]
            specks = torch.einsum("btph,btpw->bthw", gy, gx).clamp(0, 1)[:, :, None] * air[:, None, None, None, None]
            tint = torch.ones(B, 1, 3, 1, 1, device=device)
            tint[self._is("fireflies")] = torch.tensor([1., .95, .45], device=device)[None, :, None, None]
            frames = frames + (tint - frames) * specks
        ramp = torch.arange(T, device=device)[None] / 44
        onset = .55 * self.dice[:, 72:73]
        night = torch.sigmoid(9 * (ramp - .25 - onset))
        on = lambda name: self._is(name)[:, None]
        dark = on("night") * night + on("day") * (1 - night) + .55 * on("fireflies")
        flicker = on("flicker") * .22 * torch.sin(t[..., 0] * (.7 + .5 * self.dice[:, 73:74]))
        gain = torch.stack([1 - .62 * dark, 1 - .58 * dark, 1 - .40 * dark], dim=-1) * (1 + flicker)[..., None]
        return frames * gain[..., None, None]

    @torch.no_grad()
    def track(self, points: Tensor, at: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Follow pixels. points [B, N, 2] in frame `at` -> xy [B, T, N, 2] pixels, visible [B, T, N], layer [B, N].

        A point belongs to the nearest thing whose opacity there exceeds one half, else to the background.
        """
        g, places = self.geometry, self._places()
        size = torch.tensor([g.width, g.height], device=points.device)
        x, y = (points / size * 2 - 1).unbind(-1)                                                   # [B, N]
        frames = lambda z: z[:, None].expand(-1, self.frames, -1)
        now = lambda k: [z[:, at] for z in self._to_canonical(frames(x), frames(y), k, places)]
        layer, (u, v) = torch.zeros_like(x, dtype=torch.long), now(0)
        for k in range(self.sprites.shape[1]):
            on, (ku, kv) = self._solid(frames(x), frames(y), k, places)[:, at] > .5, now(k + 1)
            layer, u, v = torch.where(on, k + 1, layer), torch.where(on, ku, u), torch.where(on, kv, v)
        sx, sy = self._to_screen(u, v, layer, places)                                               # [B, T, N]
        visible = (sx.abs() < 1) & (sy.abs() < 1) & (self._grass(sx, sy) < .5)
        for k in range(self.sprites.shape[1]):
            visible &= (self._solid(sx, sy, k, places) < .5) | (frames(layer) >= k + 1)
        xy = (torch.stack([sx, sy], dim=-1) + 1) / 2 * size
        return xy, visible, layer

    def layers(self, at: int = 0) -> Tensor:
        """Which layer each pixel of frame `at` shows, [B, H, W] long; 0 is the ground."""
        height, width = self.geometry.height, self.geometry.width
        pixels = grid_points(self.geometry, height, width, len(self.pan), device=self.pan.device)
        return self.track(pixels, at)[2].unflatten(1, (height, width))


@dataclass(frozen=True)
class Clip:
    """frames [B, T, 3, H, W] in [0, 1], one caption each, and the scene they were drawn from."""
    frames: Tensor
    captions: list[str]
    scene: Scene

    def track(self, points: Tensor, at: int = 0, ids: Tensor | None = None) -> Tracks:
        """Exact tracks of points [B, N, 2] (pixels) seen in frame `at`; ids default to 0 .. N - 1."""
        xy, visible, _ = self.scene.track(points, at)
        if ids is None:
            ids = torch.arange(points.shape[1], device=points.device).expand(len(points), -1)
        return Tracks(xy, visible, ids)


class World:
    """Draws clips. level "calm": one or two large things, quiet ground, mostly still camera, fewer events.
    "full": up to four things of any size, strong textures, moving camera. eventful: share of clips with an event, if not
    the level's own (0.2, 0.65)."""

    def __init__(self, geometry: Geometry, level: str = "calm", eventful: float | None = None):
        if level not in ("calm", "full"):
            raise ValueError(f"level {level!r} is not known: use 'calm' or 'full'")
        self.geometry, self.level = geometry, level
        self.eventful = {"calm": .2, "full": .65}[level] if eventful is None else eventful

    @torch.no_grad()
    def sample(self, count: int, frames: int = 45, seed: int = 0, device: str | torch.device = "cpu") -> Clip:
        """`count` clips of `frames` frames; the same seed gives the same clips. Seeds >= HELD_OUT are for evaluation."""
        scene, captions = self.scene(count, frames, seed, device)
        return Clip(scene.render(), captions, scene)

    @torch.no_grad()
    def scene(self, count: int, frames: int = 45, seed: int = 0, device: str | torch.device = "cpu"
              ) -> tuple[Scene, list[str]]:
        g = torch.Generator(device=device).manual_seed(seed)
        calm, B, T = self.level == "calm", count, frames
        K = 2 if calm else 4
        n = B * K
        rand = lambda *s: torch.rand(*s, generator=g, device=device)
        normal = lambda *s: torch.randn(*s, generator=g, device=device)
        pick = lambda m, *s: torch.randint(m, s, generator=g, device=device)

        there = rand(B, K) < torch.tensor([1., .55, .55, .4][:K], device=device)
        kind, hue, other, texture = pick(len(KINDS), B, K), pick(10, B, K), pick(10, B, K), pick(5, B, K)
        palette = torch.tensor(list(COLOURS.values()), device=device)
        main = (palette[hue] + .04 * normal(B, K, 3)).clamp(.03, .97)
        mixed = torch.where(main.mean(-1, keepdim=True) > .5, main * .55, main * .5 + .5)            # darker or lighter
        second = torch.where(rand(B, K, 1) < .6, mixed, palette[other])
        light = F.normalize(torch.stack([normal(B), -.6 - rand(B)], dim=-1), dim=-1)                 # from above

        size0 = (.40 + .16 * rand(B, K)) if calm else (.18 + .30 * rand(B, K))
        start = (rand(B, K, 2) * 2 - 1) * (.55 if calm else .85)
        start[:, 0] *= .8
        speed = (.006 + .022 * rand(B, K)) if calm else (.004 + .036 * rand(B, K))
        walk = _walk(n, T, speed.flatten(), (-start).flatten(0, 1) + 1e-3, g).unflatten(0, (B, K))   # [B, K, T, 2]
        centre = (start[:, :, None] + walk).transpose(1, 2)                                          # [B, T, K, 2]
        t = torch.arange(T, device=device)[None, :, None]
        swing = lambda amount, slow: amount * (torch.sin(t * slow[:, None] + 6.28 * rand(B, 1, K)))
        spin = (rand(B, 1, K) < (.25 if calm else .4)) * normal(B, 1, K) * (.012 if calm else .025)
        turn0 = .35 * normal(B, 1, K)
        turn = turn0 + swing(.10, .05 + .08 * rand(B, K)) + spin * t
        grow = 1 + swing(.05 if calm else .16, .03 + .07 * rand(B, K))
        size = size0[:, None] * grow
        flex = torch.tensor([[.16, 3., -.45, .0, 0., 0.], [.12, 2., .50, .02, 2., .3], [.0, 0., 0., .07, 2., .12],
                             [.08, 2., .14, .05, 2., .1], [.03, 1., .12, .02, 2., .1], [.0, 0., .0, .10, 2.5, .4],
                             [.06, 2., .2, .08, 4., .22], [.05, 2., .15, .05, 2., .12], [.10, 3., .2, .09, 3., .17],
                             [.06, 2., .22, .03, 2., .2], [.04, 2., .2, .09, 4., -.25], [.03, 2., .1, .07, 2., .14]],
                            device=device)                                                           # one row a kind
        bend = flex[kind] * torch.cat([.6 + .8 * rand(B, K, 1), torch.ones(B, K, 1, device=device)] * 3, dim=-1)
        if calm:
            bend = bend * torch.tensor([.6, 1., .8, .6, 1., .8], device=device)

        lit = torch.stack(_rotate(light[:, None, 0], light[:, None, 1], -turn0[:, 0]), dim=-1)
        shade = torch.stack(_rotate(-.10 * light[:, None, 0], .06 - .08 * light[:, None, 1], -turn0[:, 0]), dim=-1)
        sprites = _sprites(kind.flatten(), torch.stack([main, second], dim=2).flatten(0, 1), texture.flatten(),
                           lit.flatten(0, 1), shade.flatten(0, 1), rand(n, 9)).unflatten(0, (B, K))

        place = pick(len(PLACES), B)
        canvas = _backgrounds(place, (.07 + .08 * rand(B)) if calm else (.12 + .22 * rand(B)), g)
        moving = rand(B) < (.2 if calm else .6)
        gate = moving[:, None].float()
        pan = _walk(B, T, (.003 + (.010 if calm else .018) * rand(B)), normal(B, 2), g, (.8, .1, .0, .1)) * gate[..., None]
        pace = t[..., 0] / 44
        zoom = torch.exp(gate * pace * normal(B, 1) * (.06 if calm else .18))
        roll = gate * pace * normal(B, 1) * (.03 if calm else .14)
        back = .55 + .25 * rand(B, 1)
        depth = torch.cat([back, torch.sort(.85 + .4 * rand(B, K), dim=1).values], dim=1)

        event = torch.where(rand(B) < 1 - self.eventful, 0, 1 + pick(len(EVENTS) - 1, B))
        scene = Scene(self.geometry, sprites, canvas, centre, size, turn, bend, depth, pan, zoom, roll, there, event,
                      rand(B, 96))
        return scene, self._captions(kind, hue, texture, there, place, event, moving)

    def _captions(self, *drawn: Tensor) -> list[str]:
        """Of kind, hue, texture, there [B, K] and place, event, moving [B]: what is to be seen, and what happens."""
        colours, kinds, places, events = list(COLOURS), list(KINDS), list(PLACES), list(EVENTS.values())
        over = {"sea": "over the sea", "sky": "in the sky", "meadow": "over a meadow", "sand": "on the sand",
                "forest": "in the forest", "hills": "over the hills"}
        captions = []
        for kind, hue, texture, there, place, event, moving in zip(*(z.tolist() for z in drawn)):
            things = " and ".join(f"a {colours[h]} {TEXTURES[t] + ' ' if t else ''}{kinds[k]}"
                                  for k, h, t, seen in zip(kind, hue, texture, there) if seen)
            tail = [w for w in (events[event], "camera moves" if moving else "") if w]
            captions.append(", ".join([f"{things} {over[places[place]]}", *tail]))
        return captions


def plain(caption: str) -> str:
    """What the caption of a scene says is seen: neither the event nor the camera."""
    return caption.split(",")[0]


def grid_points(geometry: Geometry, rows: int, columns: int, count: int = 1, jitter: float = 0.,
                generator: torch.Generator | None = None, device="cpu") -> Tensor:
    """Regular points [count, rows * columns, 2] in pixels, each moved at random by up to `jitter` of the spacing."""
    y = (torch.arange(rows, device=device) + .5) / rows
    x = (torch.arange(columns, device=device) + .5) / columns
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(1, -1, 2).repeat(count, 1, 1)
    if jitter:
        move = torch.rand(points.shape, generator=generator, device=device) - .5
        points = points + jitter * move / torch.tensor([columns, rows], device=device)
    return points * torch.tensor([geometry.width, geometry.height], device=device)
