"""The live canvas: a starting picture, a prompt, points that are dragged while the video plays."""
import argparse
import atexit
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

import msk
from msk.doctor import cores
from msk.kit import names
from msk.live.choose import Choice
from msk.live.events import add_events
from msk.live.server import LOOPBACK, Lobby, Pictures
from msk.live.session import Session
from msk.live.widget import STAGE_JS, knowing
from msk.models import offer
from msk.picture import fitted, read_picture
from msk.weights import write_whole
from msk.world import EVENTS

GALLERY = 12                                    # starting pictures from the world's held-out seeds
FIRST = 11                                      # of these, open at the start: one thing, by itself
RECORDINGS = "recordings"
MAX_UPLOAD = 25 * 1024 ** 2                     # bytes of one picture
LARGE = 1280                                    # pixels: no model makes frames that are wider or taller

# The page's token comes with the sink's value when the page loads; later values are pictures to open and prompts to follow.
WIRE_JS = """
// Gradio calls them "Thumbnail 1 of 12", whatever they show.
const callByName = () => document.querySelectorAll("#msk-gallery .thumbnail-item").forEach((button) => {
  const { alt } = button.querySelector("img") ?? {};
  if (alt) Object.assign(button, { ariaLabel: alt, title: alt });
});
const order = () => {
  const wish = props.value;
  if (!wish) return;
  const box = document.querySelector("#msk-stage .msk-host");
  if (!box) return void setTimeout(order, 50);
  if (!box.mskStage) {
    box.addEventListener("msk-model", () => trigger("apply"));
    box.addEventListener("msk-prompt", ({ detail }) => {
      const field = document.querySelector("#msk-prompt textarea");
      if (!field || field.value === detail) return;
      field.value = detail;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    });
    mountStage(box, socketHost({ url: "msk/ws", token: wish.token }));
    new MutationObserver(callByName).observe(document.body, { childList: true, subtree: true });
    callByName();
  }
  if (wish.open) {
    box.mskStage.open(wish.open.image, wish.open.prompt, wish.open.seed);
    if (box.getBoundingClientRect().top < 0) box.scrollIntoView();          // on a phone the pictures lie far below it
  }
  if (wish.say !== undefined) box.mskStage.follow(wish.say);
};
watch("value", order);
order();
"""

# The event that a prompt speaks of, for whoever typed it or came back to it.
HEARD_JS = f"(said) => {json.dumps([event for event in EVENTS.values() if event])}.find(event => said.includes(event)) || ''"

# Without @media: Gradio keeps such rules from what lies outside its blocks.
CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
#msk-title { padding: 6px 4px 0 !important; }
#msk-title h1 { font-size: 22px; margin: 0 0 2px; letter-spacing: -.01em; }
#msk-title p { margin: 0; opacity: .7; }
#msk-stage { border: 0 !important; background: none !important; padding: 0 !important; overflow: visible !important; }
#msk-how { opacity: .75; font-size: 13px; max-width: 640px; margin: 0 auto; padding: 0 4px; }
#msk-gallery .grid-wrap { max-height: none; height: auto; min-height: 0; overflow: hidden; padding: 36px 8px 8px; }
#msk-gallery, #msk-gallery .gallery-container { height: auto !important; min-height: 0; }
#msk-gallery .grid-container { grid-template: none / repeat(4, minmax(0, 1fr)) !important; grid-auto-rows: auto !important;
  gap: 8px; }
#msk-gallery .grid-container button { min-width: 0; aspect-ratio: 1; height: auto !important; }
#msk-stage .html-container { padding: 0 !important; overflow: visible; }
.gradio-container .app { padding: 16px clamp(6px, 6vw - 18px, 32px) !important; }
#msk-gallery img { border-radius: 8px; }
#msk-gallery .caption-label { display: none; }
.gradio-container :is(button, input, textarea):focus-visible { outline: 2px solid var(--body-text-color) !important;
  outline-offset: 2px; }
footer { display: none !important; }
"""

CHOOSE = "let who plays change the model: to any, or to these (names or folders); to any where the page is not shared"
HOW = ("**Press on a thing and drag it**: the video follows your hand while it plays. The tools under the picture pin "
       "spots, draw paths and fly the camera. By keys: **Shift-click** pins, **Enter** starts and ends, **Space** pauses, "
       "**W\u00a0A\u00a0S\u00a0D** move the camera, **Ctrl\u00a0Z** takes back, **?** lists all.")


def example_pictures(geometry, count: int = GALLERY) -> list[tuple]:
    """(picture, caption) pairs: first frames of held-out clips of the procedural world."""
    from PIL import Image

    from msk.world import HELD_OUT, World
    clip = World(geometry).sample(count, frames=1, seed=HELD_OUT)
    frames = clip.frames[:, 0].mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    found = [(Image.fromarray(frame), caption) for frame, caption in zip(frames, clip.captions)]
    return found[FIRST:] + found[:FIRST]


@dataclass
class Scene:
    """What plays: a model, and the pictures to start from, (PIL image, caption) pairs."""
    kit: object
    pictures: list[tuple]
    open_stream: Callable
    session_options: dict

    def new_session(self) -> Session:
        return Session(self.open_stream, self.kit.geometry, name=self.kit.name, **self.session_options)

    def thumbnails(self) -> list[tuple[str, str]]:
        """The pictures as files with their captions, written once: Gradio writes pictures again for each page, also while
        another is sent them."""
        found = []
        for image, caption in self.pictures:
            packed = io.BytesIO()
            fitted(image, self.kit.geometry).save(packed, "PNG")
            place = Path(os.environ["GRADIO_TEMP_DIR"]) / f"{hashlib.sha256(packed.getvalue()).hexdigest()[:24]}.png"
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                write_whole(place, packed.getvalue())
            found.append((str(place), caption))
        return found


def build(kit, pictures: list[tuple] | None = None, open_stream: Callable | None = None,
          folder: str | Path | None = RECORDINGS, models: list[str] = (), load: Callable = msk.load, **session_options):
    """The page and its lobby: (gr.Blocks, Lobby). `pictures` are (PIL image, caption) pairs; the first is open at the start.

    `open_stream(prompt, image, seed)` may give another environment than the kit's own msk.Stream. `models` are those that
    who plays may choose from, as `load(name)` takes them, this one first; a choice spends this machine's disk and memory.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_TEMP_DIR", own_folder())
    os.makedirs(os.environ["GRADIO_TEMP_DIR"], exist_ok=True)
    try:
        import gradio as gr
        import websockets  # noqa: F401  without it the server answers no WebSocket
    except ImportError:
        raise ImportError('the live canvas needs gradio and websockets: pip install "msk[demo]"') from None

    def scene_of(kit, open_stream=None) -> Scene:
        shown = [(read_picture(image), caption) for image, caption in pictures or example_pictures(kit.geometry)]
        return Scene(kit, shown, open_stream or (lambda prompt, image, seed: msk.Stream(kit, prompt, image, seed=seed)),
                     knowing(kit) | session_options | {"folder": folder})

    def change(name: str, step: Callable[[str], None]) -> Scene:
        nonlocal scene
        step("reading its weights")
        kit = load(name)
        step("making its first frames, which are the slowest")
        warm_up(kit)
        scene = scene_of(kit)
        return scene

    scene, shelf = scene_of(kit, open_stream), Pictures()
    for i, (image, _) in enumerate(scene.pictures):
        shelf.keep(f"start-{i}", image)
    offers = [offer(name, getattr(kit, "device", None)) for name in models]
    lobby = Lobby(scene.new_session, shelf, first=("start-0", scene.pictures[0][1], 0), folder=folder,
                  choice=Choice(offers, change) if offers else None, files=os.environ["GRADIO_TEMP_DIR"])
    turns = itertools.count()

    def wish(image: str, prompt: str, seed) -> dict:
        """What the page is asked to open; the turn makes each one new."""
        return {"turn": next(turns), "token": lobby.tokens.issue(),
                "open": {"image": image, "prompt": (prompt or "")[:1000], "seed": int(seed or 0) % 2 ** 31}}

    def follow(prompt: str) -> dict:
        return {"turn": next(turns), "token": lobby.tokens.issue(), "say": (prompt or "")[:1000]}

    def without_events(prompt: str) -> list[str]:
        return [part for part in map(str.strip, (prompt or "").split(",")) if part and part not in EVENTS.values()]

    def befall(event: str, prompt: str) -> tuple[str, dict]:
        """The prompt with this event in place of any other."""
        prompt = ", ".join([*without_events(prompt), *[event] * bool(event)])
        return prompt, follow(prompt)

    def greet() -> dict:
        return {"turn": next(turns), "token": lobby.tokens.issue()}

    def pick(seed, event: gr.SelectData):
        image, caption = f"start-{event.index}", scene.pictures[event.index][1]
        return image, caption, wish(image, caption, seed)

    def take_upload(file: str, prompt: str, seed):
        try:
            picture = read_picture(file, MAX_UPLOAD)
            picture.thumbnail((LARGE, LARGE))
            image = shelf.upload(picture)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        if without_events(prompt) in [without_events(caption) for _, caption in scene.pictures]:
            prompt = ""                                 # it says what was seen before
        return image, prompt, gr.Gallery(selected_index=None), wish(image, prompt, seed)

    with gr.Blocks(title="msk: the live canvas", analytics_enabled=False) as page:
        gr.HTML("<h1>The live canvas</h1><p>Drag anything. A diffusion model streams the video that follows your hand.</p>",
                elem_id="msk-title")
        sink = gr.HTML(value=greet, html_template="<span></span>", js_on_load=STAGE_JS + WIRE_JS, visible="hidden")
        current = gr.State("start-0")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                gr.HTML(html_template='<div class="msk-host" style="min-height:320px"></div>', js_on_load=None,
                        elem_id="msk-stage", apply_default_css=False)
                gr.Markdown(HOW, elem_id="msk-how")
            with gr.Column(scale=2, min_width=300):
                gallery = gr.Gallery(lambda: scene.thumbnails(), label="Start from", columns=4, allow_preview=False,
                                     selected_index=0, object_fit="cover", height="auto", elem_id="msk-gallery", buttons=[])
                upload = gr.UploadButton("Your own picture", file_types=["image"], type="filepath", size="sm")
                prompt = gr.Textbox(scene.pictures[0][1], label="Prompt", lines=1, max_lines=3, max_length=1000,
                                    info="What no point can say. Enter applies it.",
                                    placeholder="what is seen, in a few words", elem_id="msk-prompt")
                weather = gr.Radio([("none", ""), *((event, event) for event in EVENTS.values() if event)], value="",
                                   label="Weather and light", elem_id="msk-weather")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2 ** 31 - 1)

        gallery.select(pick, [seed], [current, prompt, sink], show_progress="hidden", api_visibility="private")
        sink.apply(lambda: scene.thumbnails(), None, [gallery], show_progress="hidden", api_visibility="private")
        upload.upload(take_upload, [upload, prompt, seed], [current, prompt, gallery, sink], show_progress="hidden",
                      api_visibility="private")
        seed.submit(wish, [current, prompt, seed], [sink], show_progress="hidden", api_visibility="private")
        prompt.submit(follow, [prompt], [sink], show_progress="hidden", api_visibility="private")
        prompt.change(None, [prompt], [weather], js=HEARD_JS, show_progress="hidden", api_visibility="private")
        weather.input(befall, [weather, prompt], [prompt, sink], show_progress="hidden", api_visibility="private")
        add_events(lobby)
    return page, lobby


def launch(kit, host: str = "127.0.0.1", port: int = 7860, share: bool = False, auth=None, open_browser: bool = True,
           block: bool = True, page_and_lobby: tuple | None = None, **build_options):
    """Serve the canvas, beyond this machine only with `host` or `share`; gives (page, lobby, url), now unless `block`."""
    import gradio as gr
    page, lobby = page_and_lobby or build(kit, **build_options)
    if host not in LOOPBACK:
        lobby.hosts = None
    font = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    theme = gr.themes.Base(primary_hue="emerald", neutral_hue="slate", radius_size="lg", font=font,
                           font_mono=("ui-monospace", "Consolas", "monospace"))
    theme.set(block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400")
    _, url, shared = page.launch(
        server_name=host, server_port=port, share=share, auth=auth, inbrowser=False, quiet=True, prevent_thread_lock=True,
        ssr_mode=False, theme=theme, css=CSS, footer_links=[], max_file_size="32mb", show_error=True,
        app_kwargs={"routes": lobby.routes()})
    if shared and lobby.hosts is not None:
        lobby.hosts.add(urlsplit(shared).hostname)          # a tunnel leaves the name that was asked for as it is
    print(f"The live canvas ({kit.name}) is at {url}" + (f" and {shared}" if shared else ""), flush=True)
    if open_browser:
        webbrowser.open(shared or url)
    if block:
        try:
            page.block_thread()
        finally:
            lobby.close()
    return page, lobby, url


@functools.cache
def own_folder() -> str:
    """Where Gradio keeps what the page shows, until the process ends. Its own place is one for all: two pages with the same
    pictures write the same files, even while the other sends them, and of two users the second may not write at all."""
    folder = tempfile.mkdtemp(prefix="msk-page-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def warm_up(kit) -> None:
    """Make chunks that nobody sees, until each sees as many as the one before it: each new number is slow at first."""
    stream = msk.Stream(kit, "", torch.full((3, kit.geometry.height, kit.geometry.width), 0.5))
    seen = None
    while seen != (seen := [len(pieces) for pieces in stream.memory.values()]):
        stream.step(None)
        stream.settle()


def main(argv: list[str] | None = None, *, model: str = "tiny", device: str | None = None, host: str = "127.0.0.1",
         port: int | None = None, share: bool = False, auth=None, open_browser: bool | None = None,
         choose: list[str] | None = None) -> None:
    """Load a model and serve it: from `msk demo`, or as `python -m demos.canvas`."""
    quiet = os.environ.get("NO_BROWSER", "0") not in ("", "0")
    parser = argparse.ArgumentParser(prog="python -m demos.canvas", description=__doc__)
    parser.add_argument("--model", default=model)
    parser.add_argument("--device", default=device)
    parser.add_argument("--host", default=host)
    parser.add_argument("--port", type=int, default=port or int(os.environ.get("PORT") or 7860))
    parser.add_argument("--share", action="store_true", default=share)
    parser.add_argument("--auth", metavar="NAME:PASSWORD", default=auth)
    parser.add_argument("--no-browser", action="store_true", default=quiet if open_browser is None else not open_browser)
    parser.add_argument("--choose", metavar="MODEL", nargs="*", default=choose, help=CHOOSE)
    parser.add_argument("--threads", type=int, default=max(1, cores() - 1), help="of the model on a CPU")
    args = parser.parse_args([] if argv is None else argv)
    torch.set_num_threads(args.threads)
    kit = msk.load(args.model, device=args.device)
    threading.Thread(target=warm_up, args=(kit,), daemon=True).start()
    alone = args.host in LOOPBACK and not args.share        # others may not spend this machine's disk and memory unasked
    offered = args.choose or (names() if alone or args.choose is not None else [])
    offered = [args.model, *(name for name in offered if name != args.model)] if offered else []
    login = tuple(args.auth.split(":", 1)) if isinstance(args.auth, str) else args.auth
    launch(kit, args.host, args.port, args.share, login, open_browser=not args.no_browser, models=offered,
           load=functools.partial(msk.load, device=args.device))


if __name__ == "__main__":
    import sys
    main(sys.argv[1:])
