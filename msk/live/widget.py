"""The same stage in a notebook, as an anywidget.

    stage = Stage(kit, image, "a red fish in the sea")
    stage                                        # the cell returns at once; the engine has its own thread

The page asks every 40 ms (`pull`), bringing what pointers did, and the answer carries the frames made since: nothing is
pushed, so nothing can pile up, and front ends that show no pushes from threads work as well. Without a front end the
widget is a still picture.
"""
from __future__ import annotations

import base64
import io
import json
import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..cutter import can_cut
from .export import MIME, export
from .gaze import Gaze
from .mirror import Eye
from .protocol import ProtocolError, read
from .record import parse_session
from .replay import fingerprint
from .server import MAX_UPLOAD, Link, greeting, pack
from .session import Session

SCRIPTS = ("look.js", "ways.js", "ink.js", "flying.js", "stage.js")        # in this order they are one script
STAGE_JS = "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SCRIPTS)
RENDER = """
export default { render({ model, el }) {
  const made = (tag) => document.createElement(tag), stageAt = made("div"), row = made("label"), field = made("input");
  row.style.cssText = `display: flex; align-items: center; gap: 8px; max-width: 640px; margin: 8px auto 0;
    font: 13px system-ui, sans-serif`;
  field.style.cssText = `flex: 1; min-width: 0; font: inherit; color: inherit; background: transparent; padding: 7px 10px;
    border: 1px solid #8a94a6; border-radius: 9px`;
  field.maxLength = 1000; field.title = "What no point can say; Enter applies it, from the next chunk on";
  row.dataset.lmSuppressShortcuts = "true";                 // what is typed here is no shortcut of the notebook
  row.append("Prompt", field);
  el.append(stageAt, row);
  stageAt.addEventListener("msk-prompt", ({ detail }) => { field.value = detail; });
  const stage = mountStage(stageAt, modelHost(model));
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") stage.follow(field.value);
  });
  return () => stage.close();
} };
"""


def _anywidget():
    try:
        import anywidget
    except ImportError:
        raise ImportError('the stage in a notebook needs anywidget: pip install "msk[notebook]"') from None
    return anywidget


AWAY = 5.0                  # seconds without a question after which nobody looks any more: a closed tab says no good-bye


class Pulled:
    """What waits for the page's next question, and what its questions do: no front end in here."""

    def __init__(self, session: Session):
        self.asked, self.rests = math.inf, False        # when a page asked last; whether the stream rests since none does
        self.session, self.link = session, Link(session.fps, session.ahead)
        self.words: deque[dict] = deque(maxlen=256)
        self.frames: deque = deque(maxlen=48)
        self.ears: list[Callable[[dict], None]] = []    # hear with each answer how the stream is tuned
        self._files = Path(tempfile.mkdtemp(prefix="msk-export-"))
        session.on_event, session.on_frame = self.words.append, self.show

    def show(self, frame) -> None:
        """A frame is due; where nobody asks for frames any more, the stream rests until somebody does."""
        self.frames.append(frame)
        if self.session.state == "playing" and time.monotonic() - self.asked > AWAY:
            self.session.pause()
            self.rests = True

    def answer(self, content: dict, buffers: list) -> tuple[dict, list[bytes]]:
        """One pull -> ({"type": "pulled", "words": [...]}, frames). What is wrong in it comes back as an error word."""
        self.asked = time.monotonic()
        if self.rests:
            self.rests = False
            self.session.resume()
        words, binary = iter(content.get("words", [])), iter(buffers)
        if content.get("fresh"):                        # a page that has not been greeted, be it the second or the tenth
            self.session.heard = 0
            self.words.extendleft([self.session.describe(), greeting(self.session, "notebook")])
            if not self.frames and self.session.state != "playing" and self.session.still():
                self.frames.append(self.session.still())
        for is_binary in content.get("order", [])[:256]:
            try:
                data = bytes(next(binary)) if is_binary else json.dumps(next(words))
                self._hear(read(data))
            except ProtocolError as error:
                self.words.append({"type": "error", "message": str(error)})
            except StopIteration:
                break
        for ear in self.ears:
            ear(self.session.tuning)
        said = [self.words.popleft() for _ in range(len(self.words))]
        shown = [self.frames.popleft() for _ in range(len(self.frames))]
        return {"type": "pulled", "words": said}, [pack(f, self.link.quality, self.link.sent()) for f in shown]

    def bring(self, data: bytes) -> None:
        """A session file from the page: it is opened on the stage, or a word says what is wrong with it."""
        try:
            if len(data) > MAX_UPLOAD:
                raise ValueError(f"a session file has at most {MAX_UPLOAD >> 20} MiB")
            self.session.load(parse_session(data))
        except ValueError as error:
            self.words.append({"type": "error", "message": str(error)})

    def _hear(self, message: dict) -> None:
        kind = message["type"]
        if kind == "ack":
            self.link.acked(message["seq"])
        elif kind == "ping":
            self.words.append({"type": "pong", "t": message["t"]})
        elif kind == "open":
            self.session.open(self.session.source, message["prompt"], message["seed"])
        elif kind == "export":
            path = export(self.session, message["what"], self._files, message["mark"])
            packed = base64.b64encode(path.read_bytes()).decode()
            self.words.append({"type": "file", "url": f"data:{MIME[message['what']]};base64,{packed}", "name": path.name})
            path.unlink()
        else:
            self.session.hear(message)


def knowing(kit) -> dict:
    """What a Session is told of a kit beside its name: which weights these are, how many ids, how its maps look, where it
    looks itself, what its points take hold of, and what words it does not know. Only models that carry the picture are
    shown a rest that stays: others were not taught so."""
    if getattr(kit, "preset", None) is None:
        return {}
    return {"revision": fingerprint(kit), "max_id": kit.preset.tracks.max_id, "eye": Eye(kit), "watch": Gaze(kit),
            "cut": kit.cut if can_cut() else None, "rest": kit.preset.tracks.carry > 0,
            "unknown": kit.unknown}


def ranges(stream) -> dict[str, dict]:
    """What a stream of this StreamConfig may be tuned to, as sliders are told; guidance comes on top of what was learned."""
    sink, steps = max(3, stream.sink), len(stream.levels) or stream.steps
    scale = dict(value=0.0, min=0.0, max=6.0, step=0.25)
    least = max(sink + stream.chunk, stream.first) if stream.budget else 0
    window = dict(value=max(least, stream.budget), min=least, max=max(least, 2 * stream.budget)) if stream.budget else dict(
        value=stream.window, min=0, max=max(4, stream.window))
    return {"steps": dict(value=steps, min=1, max=steps), "sink": dict(value=stream.sink, min=0, max=sink), "window": window,
            "text_scale": scale, "motion_scale": scale}


def Stage(kit, image=None, prompt: str = "", *, seed: int = 0, open_stream=None, folder=None, **session_options):
    """The live canvas as a widget; `stage.session` is its Session, `stage.close()` ends its threads.

    image: anything `read_picture` reads; None: a grey one. Takes are kept in `folder`, or with the system's temporary files.
    """
    anywidget = _anywidget()
    from ..stream import Stream
    open_stream = open_stream or (lambda prompt, image, seed: Stream(kit, prompt, image, seed=seed))
    session_options = knowing(kit) | session_options
    session = Session(open_stream, kit.geometry, name=kit.name, folder=folder or tempfile.mkdtemp(prefix="msk-takes-"),
                      **session_options)
    size = kit.geometry.width, kit.geometry.height
    session.open(image if image is not None else Image.new("RGB", size, (96, 96, 96)), prompt, seed)

    def pictured(bundle):
        """A widget's bundle, and in it the picture, for where there is no front end."""
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        packed, zoom = io.BytesIO(), 3 if size[0] < 200 else 1
        session.image.resize((zoom * size[0], zoom * size[1]), Image.Resampling.BICUBIC).save(packed, "PNG")
        return {**data, "image/png": base64.b64encode(packed.getvalue()).decode()}, metadata

    class _Stage(anywidget.AnyWidget):
        _esm = STAGE_JS + RENDER

        def __init__(self):
            super().__init__()
            self.session, self.pulled, self._turn = session, Pulled(session), threading.Lock()
            self.on_msg(self._on_pull)

        def _on_pull(self, _, content, buffers):
            if isinstance(content, dict) and content.get("type") == "pull":
                with self._turn:
                    answer, frames = self.pulled.answer(content, buffers or [])
                self.send(answer, buffers=frames)
            elif isinstance(content, dict) and content.get("type") == "session" and buffers:
                self.pulled.bring(bytes(buffers[0]))

        def _repr_mimebundle_(self, **kwargs):
            return pictured(super()._repr_mimebundle_(**kwargs))

        def with_controls(self):
            """The stage, and beside it sliders for steps, sink, window and guidance: they work from the next chunk on."""
            import ipywidgets

            def slider(name, limits):
                kind = ipywidgets.FloatSlider if "scale" in name else ipywidgets.IntSlider
                made = kind(**limits, description=name.replace("_scale", " guidance"), continuous_update=False,
                            style={"description_width": "110px"})
                made.observe(lambda change: following or self.session.tune(**{name: change["new"]}), "value")
                return made

            class _Beside(ipywidgets.HBox):
                def _repr_mimebundle_(box, **kwargs):
                    return pictured(super()._repr_mimebundle_(**kwargs))

            def follow(tuning):
                """Another session may be open, or a kept one play: no hand moves the sliders then."""
                following.append(True)
                for name in sliders.keys() & tuning.keys():
                    sliders[name].value = tuning[name]
                following.clear()

            following, sliders = [], {name: slider(name, limits) for name, limits in ranges(kit.preset.stream).items()}
            self.pulled.ears.append(follow)
            wide = ipywidgets.Layout(flex="1 1 420px", min_width="320px", display="block")
            return _Beside([ipywidgets.Box([self], layout=wide), ipywidgets.VBox([*sliders.values()])],
                           layout=ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start"))

        def close(self):
            self.session.close()
            super().close()

    return _Stage()
