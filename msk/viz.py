"""The one look for pictures. Film strips, tracks and motion maps need Pillow alone; charts need matplotlib.

Every function gives a Pillow image, or frames to write; `live` gives a picture with sliders. Colours are told apart by
everyone: Okabe and Ito's for things, cividis for amounts.
"""
from __future__ import annotations

import base64
import html
import inspect
import io
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import video
from .tracks import Tracks

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
PAPER, INK, EDGE = "#FFFFFF", "#333333", "#BBBBBB"       # background, writing, borders
GAP, LINE = 2, 18                                       # pixels between frames, height of a label


# --- pictures (Pillow) ----------------------------------------------------------------------------------------------

def image(frame: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] -> picture."""
    if frame.ndim != 3 or frame.shape[0] != 3:
        raise ValueError(f"a frame came as {list(frame.shape)}: give [3, H, W] in [0, 1]")
    pixels = (frame.detach().float().cpu().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def strip(frames: Tensor, count: int = 8, label: str = "", zoom: int = 1) -> Image.Image:
    """A film strip: `count` frames spread evenly over a clip, first and last among them.

    frames [T, 3, H, W], or [1, T, 3, H, W], in [0, 1]; zoom: each pixel as that many, both ways.
    """
    frames = _one(frames)
    size = frames.shape[-1] * zoom, frames.shape[-2] * zoom
    pictures = [image(frames[t]).resize(size, Image.NEAREST) for t in _evenly(len(frames), count)]
    return _row(pictures, label)


def grid(strips: Sequence[Image.Image], labels: Sequence[str] = (), columns: int = 1) -> Image.Image:
    """Pictures below each other (or in columns), each under its label."""
    if not strips:
        raise ValueError("no pictures came: give at least one")
    cells = [_row([s], label) for s, label in zip(strips, [*labels, *[""] * (len(strips) - len(labels))])]
    rows, width = [cells[i:i + columns] for i in range(0, len(cells), columns)], max(c.width for c in cells)
    heights = [max(c.height for c in row) for row in rows]
    page, y = Image.new("RGB", (columns * (width + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)), PAPER), 0
    for row, height in zip(rows, heights):
        for i, cell in enumerate(row):
            page.paste(cell, (i * (width + GAP), y))
        y += height + GAP
    return page


def side_by_side(*clips: Tensor) -> Tensor:
    """Clips [T, 3, H, W] as one clip, left to right, a white line between; the shorter ones hold their last frame."""
    clips = [_one(clip).float().cpu() for clip in clips]
    length, height = max(len(c) for c in clips), max(c.shape[-2] for c in clips)
    parts = []
    for clip in clips:
        clip = torch.cat([clip, clip[-1:].expand(length - len(clip), -1, -1, -1)])
        clip = torch.nn.functional.pad(clip, (0, 0, 0, height - clip.shape[-2]), value=1.0)
        parts += [torch.ones(length, 3, height, GAP), clip]
    return torch.cat(parts[1:], dim=-1)


def draw_tracks(frames: Tensor, tracks: Tracks, trail: int = 12, radius: float = 1.5, zoom: int = 1,
                colours: Sequence[str] = COLOURS[:6], count: int | None = None) -> Tensor:
    """Frames with each track's dot and the way it came; a hidden track is not drawn.

    frames [T, 3, H, W] or [B, T, 3, H, W], in [0, 1] -> the same shape, H and W times zoom. trail: pixel frames that a
    path stays. colours: of the tracks, in turn. count: only so many frames, those that `strip` would take.
    """
    if frames.ndim == 5:
        return torch.stack([draw_tracks(f, Tracks(tracks.xy[b:b + 1], tracks.visible[b:b + 1], tracks.ids[b:b + 1]),
                                        trail, radius, zoom, colours, count) for b, f in enumerate(frames)])
    xy, visible, radius = zoom * tracks.xy[0].cpu(), tracks.visible[0].cpu(), zoom * radius
    if len(xy) != len(frames):
        raise ValueError(f"tracks over {len(xy)} frames came for a clip of {len(frames)}: resample({len(frames)}) them")
    over = 4                                                                      # drawn large, then shrunk: smooth lines
    places, visible, drawn = (over * xy).tolist(), visible.tolist(), []
    for t in _evenly(len(frames), count):
        picture = image(frames[t])
        picture = picture.resize((zoom * picture.width, zoom * picture.height), Image.NEAREST)
        large = Image.new("RGBA", (picture.width * over, picture.height * over))
        pen = ImageDraw.Draw(large)
        for n in range(xy.shape[1]):
            colour = colours[n % len(colours)]
            for s in range(max(1, t - trail + 1), t + 1):
                if visible[s - 1][n] and visible[s][n]:
                    pen.line([tuple(places[s - 1][n]), tuple(places[s][n])], colour, over)
            if visible[t][n]:
                (x, y), r = places[t][n], radius * over
                pen.ellipse([x - r, y - r, x + r, y + r], colour, PAPER, over // 2)
        small = large.resize(picture.size, Image.BOX)
        picture.paste(small, mask=small.getchannel("A"))
        drawn.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size[::-1], 3))
    return (torch.stack(drawn).permute(0, 3, 1, 2).float() / 255).to(frames.device)


def draw_errors(frames: Tensor, tracks: Tracks, found: Tensor, zoom: int = 1,
                colours: Sequence[str] = COLOURS[:6]) -> Tensor:
    """Frames with a ring where each visible point should be, a line to where it is found, and their mean length in pixels.

    frames [T, 3, H, W] in [0, 1], found [1, T, N, 2] pixels -> the same shape, H and W times zoom.
    """
    should, is_at, visible, drawn = tracks.xy[0].cpu(), found[0].cpu(), tracks.visible[0].cpu(), []
    if not should.shape == is_at.shape or len(should) != len(frames):
        raise ValueError(f"tracks {list(should.shape)} and found places {list(is_at.shape)} came for {len(frames)} frames: "
                         "give both as [T, N, 2] over these frames")
    far = (is_at - should).norm(dim=-1)                                                             # [T, N]
    for t, frame in enumerate(frames):
        picture = image(frame)
        picture = picture.resize((zoom * picture.width, zoom * picture.height), Image.NEAREST)
        pen = ImageDraw.Draw(picture)
        for n in visible[t].nonzero()[:, 0].tolist():
            (x, y), to = (zoom * should[t, n]).tolist(), (zoom * is_at[t, n]).tolist()
            colour, r = colours[n % len(colours)], 1.5 * zoom
            pen.line([(x, y), tuple(to)], colour, max(1, zoom - 1))
            pen.ellipse([x - r, y - r, x + r, y + r], None, colour)
        if visible[t].any():
            pen.text((3, 1), f"{far[t][visible[t]].mean():.1f}", PAPER, stroke_width=1, stroke_fill=INK)
        drawn.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size[::-1], 3))
    return (torch.stack(drawn).permute(0, 3, 1, 2).float() / 255).to(frames.device)


def motion_colours(motion: Tensor) -> Tensor:
    """A motion map as colour: [F, Cm, h, w] -> [F, 3, h, w] in [0, 1].

    Three principal directions of the channels that say something; a cell without any track is exactly white.
    """
    motion = motion[0] if motion.ndim == 5 else motion
    cells = motion.detach().float().cpu().movedim(1, -1)                          # [F, h, w, Cm]
    drawn = cells.abs().sum(dim=-1) > 0
    colours = torch.ones(*cells.shape[:-1], 3)
    if drawn.any():
        said = cells[drawn]
        _, _, basis = torch.linalg.svd(said - said.mean(dim=0), full_matrices=False)
        basis = basis[:3] * basis[:3].sum(dim=1, keepdim=True).sign()             # a direction has no sign of its own
        mapped = (said - said.mean(dim=0)) @ basis.T
        mapped = torch.nn.functional.pad(mapped, (0, 3 - mapped.shape[1]))
        colours[drawn] = (0.45 + 0.25 * mapped / mapped.std(dim=0, correction=0).clamp_min(1e-6)).clamp(0, 0.9)
    return colours.movedim(-1, 1)


def _one(frames: Tensor) -> Tensor:
    frames = frames[0] if frames.ndim == 5 and len(frames) == 1 else frames
    if frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ValueError(f"a clip came as {list(frames.shape)}: give [T, 3, H, W] in [0, 1]")
    return frames


def _evenly(frames: int, count: int | None) -> list[int]:
    """`count` frames spread evenly, first and last among them; None: every one."""
    return torch.linspace(0, frames - 1, min(frames if count is None else count, frames)).round().long().tolist()


def _row(pictures: Sequence[Image.Image], label: str) -> Image.Image:
    width, top = sum(p.width for p in pictures) + GAP * (len(pictures) - 1), 0
    if label:
        top = max(LINE, width // 50)                            # a page shows wide pictures smaller
        font = ImageFont.load_default(round(0.72 * top))
        width = max(width, math.ceil(font.getlength(label)) + 3)
    row = Image.new("RGB", (width, top + max(p.height for p in pictures)), PAPER)
    if label:
        ImageDraw.Draw(row).text((1, top // 2), label, INK, font, anchor="lm")
    x = 0
    for picture in pictures:
        row.paste(picture, (x, top))
        x += picture.width + GAP
    return row


class Moving:
    """A clip that plays round and round wherever a page shows HTML: in a notebook, and in what is exported of it.

    frames [T, 3, H, W] in [0, 1]; width: on the page, in its pixels. Where pictures alone are shown, the last frame is.
    """

    def __init__(self, frames: Tensor, fps: float, width: int = 0, about: str = "a clip that plays round and round"):
        self.frames, self.about = _one(frames), about
        self.width = width or self.frames.shape[-1]
        with tempfile.TemporaryDirectory() as folder:
            self.webp = video.write(Path(folder) / "clip.webp", self.frames, fps).read_bytes()

    def _repr_html_(self) -> str:
        packed = base64.b64encode(self.webp).decode()
        return f'<img src="data:image/webp;base64,{packed}" width="{self.width}" alt="{html.escape(self.about)}">'

    def _repr_jpeg_(self) -> bytes:
        packed = io.BytesIO()
        image(self.frames[-1]).save(packed, "JPEG")
        return packed.getvalue()


# --- charts (matplotlib) ----------------------------------------------------------------------------------------------

def show_mask(mask: Tensor, chunk: int = 0, title: str = "") -> Image.Image:
    """Who may look at whom: [L, L] bool, rows ask, columns are looked at; a line every `chunk` tokens."""
    figure, [[axes]] = _figure(4, 4)
    axes.imshow(mask.cpu().float().numpy(), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    if chunk:
        for at in range(chunk, len(mask), chunk):
            axes.axhline(at - 0.5, color=PAPER, lw=0.8)
            axes.axvline(at - 0.5, color=PAPER, lw=0.8)
    axes.set(xlabel="is looked at", ylabel="looks", title=title)
    return _drawn(figure)


def attention_map(weights: Tensor, frame_size: tuple[int, int], query: int, title: str = "",
                  names: Sequence[str] = ()) -> Image.Image:
    """Where one token looks: weights [Lq, Lk] of a layer, tokens of a frame as (rows, columns); one panel a frame.

    With a past there are more keys than queries, and the past comes first. The circle is the token that looks.
    """
    rows, columns = frame_size
    looks = weights[query].detach().float().cpu().unflatten(0, (-1, rows, columns))
    figure, [axes] = _figure(1.6 * min(len(looks), 7) if len(looks) <= 7 else 1.15 * len(looks), 1.9, len(looks))
    names = names or [f"frame {f}" for f in range(len(looks))]
    for panel, look, name in zip(axes, looks, names):
        panel.imshow(look.numpy(), cmap="cividis", vmin=0, vmax=looks.max().item())
        panel.set(xticks=[], yticks=[])
        panel.set_title(name, fontsize=8)
    place, held = query % (rows * columns), len(looks) - len(weights) // (rows * columns)
    panel = axes[held + query // (rows * columns)]
    panel.plot(place % columns, place // columns, "o", mfc="none", mec=COLOURS[5], ms=8, mew=2)
    figure.suptitle(title, fontsize=10)
    return _drawn(figure)


def guidance_grid(pictures: dict[tuple[float, float], Image.Image], title: str = "",
                  notes: dict[tuple[float, float], str] | None = None) -> Image.Image:
    """Pictures by (text_scale, motion_scale), text downwards, motion to the right; notes: a line below each."""
    texts, motions = (sorted({key[i] for key in pictures}) for i in (0, 1))
    figure, axes = _figure(1.8 * len(motions), 1.9 * len(texts), len(motions), len(texts))
    for row, w_t in zip(axes, texts):
        for panel, w_m in zip(row, motions):
            panel.set(xticks=[], yticks=[])
            if (w_t, w_m) in pictures:
                panel.imshow(pictures[w_t, w_m])
                panel.set_xlabel((notes or {}).get((w_t, w_m), ""), fontsize=8)
            if w_t == texts[0]:
                panel.set_title(f"motion {w_m:g}")
            if w_m == motions[0]:
                panel.set_ylabel(f"text {w_t:g}")
    figure.suptitle(title)
    return _drawn(figure)


def loss_curves(losses: dict[str, Sequence[float]], smooth: float = 0.95, title: str = "", log: bool = True) -> Image.Image:
    """Losses over steps, by name: each pale as it came and dark as a running mean."""
    figure, [[axes]] = _figure(6, 3)
    axes.spines[["top", "right"]].set_visible(False)
    for i, (name, values) in enumerate(losses.items()):
        mean, means = 0.0, []
        for step, value in enumerate(values, 1):
            mean = smooth * mean + (1 - smooth) * value
            means.append(mean / (1 - smooth**step))             # as if there had been nothing before the first
        axes.plot(values, color=COLOURS[i % 6], alpha=0.25, lw=0.8)
        axes.plot(means, color=COLOURS[i % 6], label=name)
    if log and all(v > 0 for values in losses.values() for v in values):
        _logarithmic(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    return _drawn(figure)


def panels(pictures: dict[str, Image.Image], columns: int = 0, width: float = 1.9, title: str = "", sharp: bool = True
           ) -> Image.Image:
    """Pictures under readable names, as many columns as there are pictures unless said; sharp: pixels stay square."""
    columns = columns or len(pictures)
    rows = math.ceil(len(pictures) / columns)
    shape = max(p.height / p.width for p in pictures.values())
    figure, axes = _figure(width * columns, (width * shape + 0.3) * rows + 0.2, columns, rows)
    for panel in axes.flat[len(pictures):]:
        panel.axis("off")
    for panel, (name, picture) in zip(axes.flat, pictures.items()):
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=EDGE, lw=0.5)
        panel.imshow(picture, interpolation="nearest" if sharp else "antialiased")
        panel.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return _drawn(figure)


def curves(lines: dict[str, Sequence], x: str = "", y: str = "", title: str = "", marks: dict[str, float] | None = None,
           log: bool = False) -> Image.Image:
    """Lines by name: y values, or (x values, y values); marks: upright dotted lines by name."""
    figure, [[axes]] = _figure(6, 3)
    _lines(axes, lines, x, y, marks)
    axes.set_title(title, fontsize=10)
    if log:
        _logarithmic(axes)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    return _drawn(figure)


def curves_beside(panels: dict[str, dict[str, Sequence]], x: str = "", title: str = "",
                  marks: dict[str, float] | None = None, width: float = 4.6) -> Image.Image:
    """`curves` of the same names side by side: one panel, `width` inches wide, for each measure, named with its unit."""
    figure, [axes] = _figure(width * len(panels), 3.2, len(panels))
    for panel, (y, lines) in zip(axes, panels.items()):
        _lines(panel, lines, x, y, marks)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=len(names))
    figure.suptitle(title, fontsize=10)
    return _drawn(figure)


def _lines(axes, lines: dict[str, Sequence], x: str, y: str, marks: dict[str, float] | None) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    dashes = ("-", "--", "-.", ":")
    for i, (name, line) in enumerate(lines.items()):
        at, values = line if isinstance(line, tuple) else (range(len(line)), line)
        axes.plot(_plain(at), _plain(values), dashes[i // 2 % 4], color=COLOURS[i % 6], label=name,
                  marker="o" if len(values) < 25 else None, ms=3)
    if all(not isinstance(line, tuple) or isinstance(line[0], range) for line in lines.values()):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if all(isinstance(values, Tensor) and not values.is_floating_point() for values in
           (line[1] if isinstance(line, tuple) else line for line in lines.values())):
        axes.yaxis.get_major_locator().set_params(integer=True)                                     # counts
    for name, at in (marks or {}).items():
        axes.axvline(at, color=INK, lw=0.8, ls=":")
        axes.annotate(name, (at, 1), (3, 0), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8,
                      color=INK, va="top")
    axes.set(xlabel=x, ylabel=y)


def _logarithmic(axes) -> None:
    """The y axis in powers; over few decades with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 300 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def bars(values: dict[str, float], x: str = "", title: str = "", digits: int = 2, others: Sequence[str] = ()) -> Image.Image:
    """Amounts by name, lying, each with its number. others: names in the second colour, as what somebody else reports."""
    figure, [[axes]] = _figure(6, 0.7 + 0.3 * len(values))
    axes.spines[["top", "right"]].set_visible(False)
    drawn = axes.barh(list(values), list(values.values()), color=[COLOURS[name in others] for name in values])
    axes.bar_label(drawn, fmt=f"%.{digits}f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(nbins=6)
    axes.set(xlabel=x)
    axes.set_title(title, fontsize=10)
    return _drawn(figure)


def whiskers(measures: dict[str, dict[str, tuple[float, float]]], title: str = "", digits: int = 3) -> Image.Image:
    """Settings below each other, a panel for each measure (named with its unit): the mean as a dot with its number, and two
    standard errors to either side. measures: by name, by setting: (mean, standard error)."""
    names = list(dict.fromkeys(name for rows in measures.values() for name in rows))
    figure, [axes] = _figure(1.2 + 2.3 * len(measures), 1.1 + 0.34 * len(names), len(measures))
    for i, (panel, (measure, rows)) in enumerate(zip(axes, measures.items())):
        at = [names.index(name) for name in rows]
        means, errors = zip(*rows.values()) if rows else ((), ())
        panel.errorbar(means, at, xerr=[2 * e for e in errors], fmt="o", color=COLOURS[i % 6], ms=5, lw=1.2, capsize=2)
        for y, mean in zip(at, means):
            panel.annotate(f"{mean:.{digits}g}", (mean, y), (0, 5), textcoords="offset points", fontsize=7, ha="center")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set(ylim=(len(names) - 0.5, -0.7), yticks=range(len(names)))
        panel.set_yticklabels(names if not i else [], fontsize=8)
        panel.set_xlabel(measure, fontsize=8)
        panel.tick_params(axis="x", labelsize=7)
        panel.xaxis.get_major_locator().set_params(nbins=4)
        panel.margins(x=0.15)
        panel.grid(axis="y", lw=0.4, alpha=0.5)
    figure.suptitle(title, fontsize=9)
    return _drawn(figure)


def matrices(tables: dict[str, Tensor], x: str = "", y: str = "", title: str = "", unit: str = "", every: int = 0,
             ticks: tuple[Sequence, Sequence] | None = None, numbers: str | Sequence[str] = "", size: float = 2.4,
             apart: bool = False) -> Image.Image:
    """Tables [rows, columns] as heat maps on one scale, or each on its own (apart); numbers: a format to write each value
    in, as ".1f", or one a table."""
    shape = max(min(1, len(table) / table.shape[1]) for table in tables.values())
    figure, [axes] = _figure((size + apart) * len(tables) + 0.6, size * shape + 0.5 + 0.2 * bool(title), len(tables))
    formats = [numbers] * len(tables) if isinstance(numbers, str) else numbers
    for i, (panel, (name, table)) in enumerate(zip(axes, tables.items())):
        known = table if apart else torch.cat([t.flatten() for t in tables.values()])
        known = known[known.isfinite()]
        low, high = (known.min().item(), known.max().item()) if len(known) else (0, 1)
        shown = panel.imshow(_plain(table), cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        for at in range(every, max(table.shape), every) if every else ():
            panel.axhline(at - 0.5, color=PAPER, lw=0.8)
            panel.axvline(at - 0.5, color=PAPER, lw=0.8)
        if ticks is not None:
            panel.set_yticks(range(len(ticks[0])), ticks[0], fontsize=8)
            panel.set_xticks(range(len(ticks[1])), ticks[1], fontsize=8)
        for r, row in enumerate(table.tolist()) if formats[i] else ():
            for c, value in enumerate(row):
                if math.isnan(value):
                    continue
                panel.text(c, r, format(value, formats[i]), ha="center", va="center", fontsize=8,
                           color="black" if value > (low + high) / 2 else "white")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel(x, fontsize=8)
        if apart:
            figure.colorbar(shown, ax=panel, shrink=0.8).ax.tick_params(labelsize=7)
    axes[0].set_ylabel(y, fontsize=8)
    if not apart:
        figure.colorbar(shown, ax=list(axes), shrink=0.8).set_label(unit, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return _drawn(figure)


def plane(things: dict[str, Sequence], limit: float = 2.6, size: float = 2.1, title: str = "") -> Image.Image:
    """Panels of the plane, by name, each a list of things drawn in order: dots [N, 2], paths [K, N, 2] over K places, or
    arrows as (places [N, 2], directions [N, 2]), each thing in the next colour."""
    figure, [axes] = _figure(size * len(things), size + 0.4, len(things))
    for panel, (name, inside) in zip(axes, things.items()):
        for i, thing in enumerate(inside):
            if isinstance(thing, tuple):
                (at, way) = (_plain(part) for part in thing)
                panel.quiver(*at.T, *way.T, color=COLOURS[i % 6], angles="xy", width=0.006, zorder=3)
            elif thing.ndim == 3:
                panel.plot(*_plain(thing.movedim(-1, 0)), color=COLOURS[i % 6], lw=0.5, alpha=0.6, zorder=1)
            else:
                panel.plot(*_plain(thing.T), ".", color=COLOURS[i % 6], ms=3.5, alpha=0.7, mew=0, zorder=2)
        panel.set(xlim=(-limit, limit), ylim=(limit, -limit), xticks=[], yticks=[], aspect="equal")
        panel.spines[:].set_color(EDGE)
        panel.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return _drawn(figure)


def score(tracks: Tracks, size: tuple[int, int], title: str = "") -> Image.Image:
    """One row a track, one column a frame: what it says and, where it says nothing, why. size: (height, width), pixels."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    xy, visible = tracks.xy[0].cpu(), tracks.visible[0].cpu()
    inside = ((xy >= 0) & (xy < torch.tensor([size[1], size[0]]))).all(dim=-1)
    reason = torch.where(visible, 0, torch.where(inside, 1, 2)).T                                           # [N, T]
    names, colours = ("seen", "hidden within the frame", "outside"), (COLOURS[0], COLOURS[1], "#CCCCCC")
    figure, [[axes]] = _figure(6.5, 0.9 + 0.055 * len(reason))
    axes.imshow(reason.numpy(), cmap=ListedColormap(colours), vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="pixel frame", ylabel="track")
    axes.set_title(title, fontsize=10)
    axes.legend([Patch(color=c) for c in colours], names, fontsize=8, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return _drawn(figure)


# --- live (ipywidgets) ------------------------------------------------------------------------------------------------

def live(draw: Callable[..., Image.Image], **controls):
    """A picture with controls: `draw(**values)` again whenever one moves; their first values are draw's own defaults.

    A control is a widget, or what becomes one: (low, high), (low, high, step), a list (a slider, if of numbers), a bool.
    Without a front end there remains the picture as it was drawn first.
    """
    try:
        import ipywidgets
    except ImportError:
        raise ImportError('sliders need ipywidgets, which is not installed: pip install "msk[notebook]"') from None
    first = {name: p.default for name, p in inspect.signature(draw).parameters.items()}

    def widget(name, control):
        if isinstance(control, list) and all(isinstance(value, (int, float)) for value in control):
            return ipywidgets.SelectionSlider(options=control, value=first[name])
        return ipywidgets.interactive.widget_from_abbrev(control, first[name])

    made = {name: widget(name, control) for name, control in controls.items()}
    shown = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", object_fit="contain"))

    def redraw(_=None):
        packed = io.BytesIO()
        draw(**{name: control.value for name, control in made.items()}).save(packed, "PNG")
        shown.value = packed.getvalue()

    class _Live(ipywidgets.VBox):
        def _repr_mimebundle_(self, **kwargs):
            bundle = super()._repr_mimebundle_(**kwargs)
            data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
            return {**data, "image/png": base64.b64encode(shown.value).decode()}, metadata

    began = time.perf_counter()
    redraw()
    quick = time.perf_counter() - began < 0.3                                       # else only where the hand comes to rest
    for name, control in made.items():
        control.description = name.replace("_", " ")
        if hasattr(control, "continuous_update"):
            control.continuous_update = quick
        control.observe(redraw, "value")
    return _Live([*made.values(), shown])


def _plain(values) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _figure(width: float, height: float, columns: int = 1, rows: int = 1):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('charts need matplotlib, which is not installed: pip install "msk[notebook]"') from error
    figure = Figure(figsize=(max(2, width), max(1.4, height)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _drawn(figure) -> Image.Image:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    used = np.flatnonzero((pixels != 255).any(axis=(1, 2)))                 # panels that keep their shape leave room
    return Image.fromarray(pixels[max(0, used[0] - 6):used[-1] + 7].copy())
