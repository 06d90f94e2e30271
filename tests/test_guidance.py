"""The identities of Eq. 2."""
import pytest
import torch

from msk.flow import to_x0
from msk.guidance import Condition, Guided, joint_guidance


class Counted:
    """A model that counts how often it is asked."""

    def __init__(self, dit):
        self.dit, self.calls = dit, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.dit(*args, **kwargs)


@pytest.fixture
def scene(make_dit, clip):
    dit, (x, text, motion, image), t = Counted(make_dit()), clip(3), torch.rand(2, 3)
    cond = Condition(text, motion, image, torch.zeros_like(text))
    with torch.no_grad():
        both = dit(x, t, text, motion, image)
        motion_only = dit(x, t, cond.null_text, motion, image)
        text_only = dit(x, t, text, None, image)
    dit.calls = 0
    return dit, x, t, cond, both, motion_only, text_only


def guided(scene, text_scale, motion_scale):
    dit, x, t, cond, *_ = scene
    dit.calls = 0
    with torch.no_grad():
        return joint_guidance(dit, x, t, cond, text_scale, motion_scale)


def test_it_is_the_papers_formula_in_its_affine_form(scene, close):
    *_, both, motion_only, text_only = scene
    close(guided(scene, 3.0, 1.5), 4.5 * both - 7 / 3 * motion_only - 7 / 6 * text_only, atol=1e-3)


@pytest.mark.parametrize("scales", [(0.75, 0.25), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_scales_that_sum_to_one_or_nothing_guide_nowhere(scene, scales, close):
    close(guided(scene, *scales), scene[4])
    assert scene[0].calls == 1


def test_three_passes_in_one_batch_say_the_same(scene, close):
    dit, x, t, cond, *_ = scene
    want = guided(scene, 3.0, 1.5)
    assert dit.calls == 3
    with torch.no_grad():
        close(joint_guidance(dit, x, t, cond, 3.0, 1.5, together=True), want)
        assert dit.calls == 4
        close(joint_guidance(dit, x, t, cond, 3.0, 0.0, together=True), guided(scene, 3.0, 0.0))


def test_without_motion_scale_it_is_text_guidance_on_top_of_motion(scene, close):
    *_, both, motion_only, _ = scene
    close(guided(scene, 3.0, 0.0), motion_only + 3.0 * (both - motion_only), atol=1e-3)
    assert scene[0].calls == 2


def test_without_text_scale_it_is_motion_guidance_on_top_of_text(scene, close):
    *_, both, _, text_only = scene
    close(guided(scene, 0.0, 1.5), text_only + 1.5 * (both - text_only), atol=1e-3)
    assert scene[0].calls == 2


def test_guiding_velocities_is_guiding_clean_predictions(scene, close):
    _, x, t, _, both, motion_only, text_only = scene
    a, b, c = (to_x0(x, v, t) for v in (both, motion_only, text_only))
    close(to_x0(x, guided(scene, 3.0, 1.5), t), 4.5 * a - 7 / 3 * b - 7 / 6 * c, atol=1e-3)


def test_a_model_deaf_to_motion_sees_plain_text_guidance(make_dit, clip, close):
    dit, (x, text, motion, image), t = make_dit(), clip(3), torch.rand(2, 3)
    with torch.no_grad():
        dit.patch_embedding.weight[:, 4:-4] = 0                          # noise, motion, image
        cond = Condition(text, motion, image, torch.zeros_like(text))
        yes, no = dit(x, t, text, None, image), dit(x, t, cond.null_text, None, image)
        close(joint_guidance(dit, x, t, cond, 3.0, 1.5), no + (3.0 + 1.5 / 4.5) * (yes - no), atol=1e-3)


def test_the_image_stays_in_every_branch(clip):
    x, text, motion, image = clip(3)
    cond = Condition(text, motion, image, torch.zeros_like(text))
    assert cond.without_text().image is image and cond.without_motion().image is image
    assert cond.without_text().motion is motion and cond.without_motion().text is text


def test_a_guided_student_is_the_papers_formula_on_one_past_and_remembers_the_pass_that_was_asked_for(make_dit, clip, close):
    dit, (x, text, motion, image), t = make_dit(), clip(4), torch.full((2, 2), 0.8)
    past = dit.remember(x[:, :2], text, motion[:, :2], image[:, :2], past=[])
    now = x[:, 2:], t, text, motion[:, 2:], image[:, 2:]
    keys, plain = [], []
    with torch.no_grad():
        made = Guided(dit, torch.zeros_like(text), 3.0, 1.5)(*now, past=past, keys=keys)
        both = dit(*now, past=past, keys=plain)
        motion_only = dit(now[0], t, torch.zeros_like(text), *now[3:], past=past)
        text_only = dit(*now[:3], None, now[4], past=past)
    close(made, (2 * motion_only + text_only) / 3 + 3 * (both - motion_only) + 1.5 * (both - text_only))
    assert len(keys) == len(plain) and all(torch.equal(a, b) for k, p in zip(keys, plain) for a, b in zip(k, p))
