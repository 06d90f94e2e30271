"""The stage's third way, where only Gradio's own routes are let through: a generator in its queue is the long answer, calls
are the posts (post.py). What goes over them is base64, a third more bytes.

Gradio's login guards all of them; token and Origin are looked at as always. Annotations are no strings here: it reads them.
"""
import base64
import binascii
from contextlib import aclosing

from .post import MAX_POST, PostLine
from .server import MAX_UPLOAD, Lobby, log

MAX_LINES = 16                  # pages on this way: each holds one of Gradio's 40 workers


def add_events(lobby: Lobby) -> None:
    """Give the gr.Blocks that is being built the calls by which a page reaches the lobby."""
    import gradio as gr

    here: set[PostLine] = set()

    async def stream(token: str, resume: str, request: gr.Request) -> str:
        refused = refusal(request, token, resume)
        if refused is None and len(here) >= MAX_LINES:
            refused = 503, f"{len(here)} pages are here by Gradio's events, and no more can be: come back later"
        if refused is not None:
            raise gr.Error(refused[1], print_exception=False)
        here.add(line := lobby.new_line(resume, events=True))
        try:
            yield line.key
            async with aclosing(line.down()) as pieces:
                async for piece in pieces:
                    yield base64.b64encode(piece).decode()
        finally:
            here.discard(line)
            line.loop.call_later(0.5, line.end, 1006)           # as `down` does, which may not have begun

    async def post(token: str, key: str, data: str, took: int, request: gr.Request) -> tuple[int, str]:
        return refusal(request, token, key, data) or lobby.post(key, read(data, MAX_POST), took if type(took) is int else 0)

    async def bring(token: str, id: str, data: str, request: gr.Request) -> tuple[int, str]:
        async def session():
            return read(data, MAX_UPLOAD)
        return refusal(request, token, id, data) or await lobby.bring(id, session)

    def refusal(request: gr.Request, token: str, *said: str) -> tuple[int, str] | None:
        if not all(isinstance(word, str) for word in (token, *said)):           # Gradio lets anything through
            return 400, "a call came that is not of this page's kind"
        why = lobby.stranger(request.headers, token)
        if why is None:
            return None
        log.warning("refused a page: %s", why)
        return 403, why

    gr.api(stream, api_name="msk_stream", concurrency_limit=None, api_visibility="undocumented")
    for call in (post, bring):                                  # after each queued call Gradio makes a table of all
        gr.api(call, api_name=f"msk_{call.__name__}", queue=False, api_visibility="undocumented")


def read(data: str, most: int) -> bytes | None:
    """None: too much."""
    if len(data) > most * 4 // 3 + 4:
        return None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return b"?"                                             # no row of messages and no session: it is refused as such
