"""The notebook's stage in a real browser: its page talks to a session through `Pulled`, as through a kernel's comm."""
import base64
import time

import pytest

from msk.live.session import Session
from msk.live.widget import RENDER, STAGE_JS, Pulled
from tests.pages import exact
from tests.pages.browser import open_browser

# anywidget's model: what is sent goes to Python, and the answer comes back as a custom message.
MODEL_JS = """async ([esm]) => {
  const to64 = (b) => btoa(String.fromCharCode(...new Uint8Array(b)));
  const from64 = (s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));
  const ears = new Set(), model = {
    on: (_, ear) => ears.add(ear), off: (_, ear) => ears.delete(ear),
    async send(content, _, buffers = []) {
      const [answer, frames] = await pull(content, buffers.map(to64));
      for (const ear of ears) ear(answer, frames.map((f) => new DataView(from64(f).buffer)));
    } };
  const widget = (await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })))).default;
  window.leave = widget.render({ model, el: document.body });
}"""


@pytest.fixture
def played(tmp_path):
    """(a session on the exact environment, its streams)."""
    streams, kit = [], exact.exact_kit()

    def open_stream(prompt, image, seed):
        streams.append(exact.ExactStream(kit, prompt, image, seed=seed, cost=0.01))
        return streams[-1]

    with Session(open_stream, kit.geometry, name="exact", folder=tmp_path) as session:
        session.open(exact.picture(), "a red ball")
        yield session, streams


def test_the_prompt_is_shown_and_another_is_followed_while_it_plays(played):
    session, streams = played
    pulled = Pulled(session)

    def pull(content, buffers):
        answer, frames = pulled.answer(content, [base64.b64decode(b) for b in buffers])
        return answer, [base64.b64encode(f).decode() for f in frames]

    with open_browser() as browser:
        page, complaints = browser.new_page(), []
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.expose_function("pull", pull)
        page.evaluate(MODEL_JS, [STAGE_JS + RENDER])
        field, stage = page.get_by_label("Prompt"), "document.body.firstElementChild.mskStage"
        page.wait_for_function(f"() => {stage}.state === 'ready' && document.querySelector('input').value === 'a red ball'")
        page.get_by_role("button", name="Start").click()
        page.wait_for_function(f"() => {stage}.current?.index > 3")
        field.fill("snow ")
        field.press("a")                                        # a key of the stage: here it is a letter
        field.press("Enter")
        page.wait_for_function(f"() => {stage}.prompt === 'snow a'")
        end = time.monotonic() + 20
        while not streams[0].said:
            assert time.monotonic() < end, "the stream was not told"
            page.wait_for_timeout(50)                           # and the page goes on asking
        assert streams[0].said[0][1] == "snow a" and not streams[0].anchors and session.state == "playing"
        page.get_by_role("button", name="Undo").click()
        page.wait_for_function("() => document.querySelector('input').value === 'a red ball'")
        page.evaluate("leave()")
        page.close()
        assert complaints == []
