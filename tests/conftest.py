"""What the tests share: small models whose every weight speaks, and clips to feed them."""
import dataclasses
from pathlib import Path

import pytest
import torch

from msk.config import PRESETS
from msk.dit import DiT
from msk.kit import Kit

torch.set_num_threads(1)
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """name -> the tensors of tests/golden/<name>.safetensors."""
    from safetensors.torch import load_file
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture
def close():
    return lambda a, b, atol=1e-4: torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


@pytest.fixture
def exact():
    """To 1e-5, and of large numbers to as large a part: what golden tensors are held to."""
    return lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def make_dit():
    """A toy transformer with no weight at zero: what is wired is heard."""
    def make(seed=0, **changes) -> DiT:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            dit = DiT(dataclasses.replace(PRESETS["toy"].dit, **changes)).eval()
            for p in dit.parameters():
                torch.nn.init.normal_(p, std=0.15)
        return dit
    return make


@pytest.fixture
def clip():
    """latents, text, motion, image of F latent frames on a 4 x 4 grid (4 tokens a frame)."""
    def make(frames, batch=2, config=PRESETS["toy"].dit):
        g = torch.Generator().manual_seed(1)
        size = batch, frames
        image = torch.zeros(*size, config.image_channels, 4, 4)
        image[:, 0] = torch.randn(batch, config.image_channels, 4, 4, generator=g)
        return (torch.randn(*size, config.latent_channels, 4, 4, generator=g),
                torch.randn(batch, 5, config.text_dim, generator=g),
                torch.randn(*size, config.motion_channels, 4, 4, generator=g), image)
    return make


@pytest.fixture
def kit():
    """A toy kit whose transformer moves things."""
    made = Kit.random("toy", seed=0)
    g = torch.Generator().manual_seed(2)
    made.dit.head.head.weight.copy_(torch.randn(made.dit.head.head.weight.shape, generator=g) * 0.3)
    return made


# -- the page in a browser ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    from tests.pages.browser import open_browser
    with open_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def canvas_options():
    """What `serve` gets beside the exact environment, module by module."""
    return {}


@pytest.fixture(scope="module")
def canvas(tmp_path_factory, canvas_options):
    """The canvas on the exact environment, with all of its page: lobby and address."""
    pytest.importorskip("gradio")
    from tests.pages.serve import free_port, serve
    page, lobby, url = serve("exact", free_port(), folder=tmp_path_factory.mktemp("takes"), **canvas_options)
    yield lobby, url
    lobby.close()
    page.close(verbose=False)


@pytest.fixture
def stage(browser, canvas):
    """A fresh page, ready to play; afterwards it must not have complained, nor asked anybody else for anything."""
    from tests.pages.browser import Stage
    stage = Stage(browser, canvas[1]).state("ready").wait("stage.current")
    yield stage
    stage.page.close()
    assert stage.complaints == [] and stage.strangers == []
