"""A page that is shared: its tunnel's name is answered to, with the headers that come through a tunnel, and no other is."""
from types import SimpleNamespace

import pytest

from tests.pages.serve import free_port, serve

SHARED = "0123abcd.gradio.live"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """(lobby, url) of a canvas whose tunnel is only said to be there."""
    gradio = pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradio.networking, "setup_tunnel", lambda **where: f"https://{SHARED}")
        page, lobby, url = serve("exact", free_port(), folder=tmp_path_factory.mktemp("takes"), share=True)
        yield lobby, url
        lobby.close()
        page.close(verbose=False)


def tunnelled(host, origin=None, **more):
    """frp hands on the Host that was asked for; what ends the TLS before it may set the others."""
    return {"host": host, "origin": origin or f"https://{host}", "x-forwarded-for": "203.0.113.7",
            "x-forwarded-proto": "https", **more}


@pytest.mark.parametrize("headers", [
    tunnelled(SHARED), tunnelled(SHARED, **{"x-forwarded-host": SHARED}),
    tunnelled("127.0.0.1:7860", f"https://{SHARED}", **{"x-forwarded-host": f"{SHARED}, inner.proxy"}),
    {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}], ids=range(4))
def test_a_shared_page_is_let_in_by_every_way(shared, headers):
    httpx = pytest.importorskip("httpx")
    lobby, url = shared
    token = lobby.tokens.issue()
    assert lobby.refusal(SimpleNamespace(headers=headers | {"sec-websocket-protocol": f"msk.v2, token.{token}"})) is None
    with httpx.Client(base_url=url, trust_env=False, headers=headers) as http:
        assert http.get("/").status_code == 200
        assert http.post("/msk/in/guess", headers={"x-msk-token": token}).status_code == 404           # let in: no such line
        assert http.post("/gradio_api/run/msk_post", json={"data": [token, "guess", "", 0]}).json()["data"][0] == 404
        assert http.post("/msk/in/guess", headers={"x-msk-token": "forged"}).status_code == 403


@pytest.mark.parametrize("headers", [
    tunnelled("evil.example"), tunnelled(SHARED, "https://evil.example"), tunnelled(SHARED, "https://other.gradio.live"),
    tunnelled(SHARED, "https://evil.example", **{"x-forwarded-host": "evil.example"}),
    tunnelled("evil.example", f"https://{SHARED}", **{"x-forwarded-host": SHARED}),
    tunnelled("127.0.0.1:7860", "http://127.0.0.1:1", **{"x-forwarded-host": "127.0.0.1:1"})], ids=range(6))
def test_a_page_of_another_name_is_not(shared, headers):
    lobby, _ = shared
    assert lobby.stranger(headers, lobby.tokens.issue()) is not None
