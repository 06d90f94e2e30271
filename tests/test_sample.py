import pytest
import torch

from msk.config import PRESETS
from msk.flow import like, schedule, twice_shifted
from msk.guidance import Condition, joint_guidance
from msk.sample import SOLVERS, options, sample

TARGET = 2.0


def straight(x, t, text, motion=None, image=None, clip=None):
    """The exact velocity of data that is all one point."""
    return (x - TARGET) / like(t, x)


def steps_of(model, noise, **options):
    text = torch.zeros(len(noise), 1, 4)
    return list(sample(model, noise, Condition(text, None, None, text), **options))


def bent(x, t, text, motion=None, image=None, clip=None):
    """The exact velocity of data that is Gaussian, with a variance of its own in each channel: its paths are bent."""
    spread, t = torch.linspace(0.1, 0.7, x.shape[2])[:, None, None], like(t, x)
    return ((t - (1 - t) * spread**2) * x) / ((1 - t) ** 2 * spread**2 + t**2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_flow_arrives_in_any_number_of_steps(close, solver):
    noise = torch.randn(2, 3, 4, 4, 4)
    for steps in (1, 3, 10):
        last = steps_of(straight, noise, steps=steps, solver=solver)[-1]
        close(last.x0, torch.full_like(noise, TARGET))


def test_each_step_says_where_it_stands(close):
    noise = torch.randn(1, 3, 4, 4, 4)
    steps = steps_of(straight, noise, steps=6, time_shift=6.0)
    assert [s.index for s in steps] == list(range(6)) and {s.total for s in steps} == {6}
    assert [s.t for s in steps] == schedule(6, 6.0)
    assert torch.equal(steps[0].latents, noise)
    for s in steps:                                     # x_t stays on the line from noise to data
        close(s.latents, (1 - s.t) * torch.full_like(noise, TARGET) + s.t * noise)


def test_the_last_clean_prediction_is_where_euler_ends(make_dit, clip, close):
    dit, (noise, text, motion, image) = make_dit(), clip(3)
    cond = Condition(text, motion, image, torch.zeros_like(text))
    steps = list(sample(dit, noise, cond, steps=4, time_shift=3.0, text_scale=2.0, motion_scale=1.0))
    x = noise
    for t, after in zip(schedule(4, 3.0), [*schedule(4, 3.0)[1:], 0.0]):
        with torch.no_grad():
            x = x + (after - t) * joint_guidance(dit, x, x.new_full((2, 3), t), cond, 2.0, 1.0)
    close(steps[-1].x0, x, atol=1e-3)
    assert not steps[-1].x0.requires_grad


def test_unipc_is_diffusers():
    """Step after step what Wan's pipelines do, along levels of our own."""
    diffusers = pytest.importorskip("diffusers")
    noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for count in (2, 3, 7, 25):
        theirs = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
        theirs.set_timesteps(count)
        theirs.sigmas = torch.tensor([1 - 1e-6, *schedule(count, 6.0)[1:], 0.0], dtype=torch.float64)
        theirs.timesteps = 1000 * theirs.sigmas[:-1]
        made, x = steps_of(bent, noise, steps=count, solver="unipc"), noise.double()
        for step, t in zip(made, theirs.timesteps):
            torch.testing.assert_close(step.latents, x.float(), rtol=0, atol=1e-5)
            x = theirs.step(bent(x, (t / 1000).expand(2, 3), None), t, x, return_dict=False)[0]
        torch.testing.assert_close(made[-1].x0, x.float(), rtol=0, atol=1e-5)


def test_unipc_is_nearer_in_half_the_steps():
    """The end of a bent path is known: each channel of the noise, times the data's own deviation."""
    noise = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    want = noise * torch.linspace(0.1, 0.7, 4)[:, None, None]
    off = lambda solver, steps, shift: (steps_of(bent, noise, steps=steps, time_shift=shift, solver=solver)[-1].x0
                                        - want).norm()
    for steps, shift in ((50, 1.0), (50, 3.0), (12, 1.0)):
        assert off("unipc", steps // 2, shift) < off("euler", steps, shift)
    assert off("unipc", 32, 1.0) < off("unipc", 16, 1.0) / 3.5                      # of second order,
    assert off("euler", 32, 1.0) > off("euler", 16, 1.0) / 2.5                      # and of first


def test_a_teacher_is_sampled_as_its_preset_says():
    wan, track = PRESETS["wan2.1-1.3b"], PRESETS["wantrack-1.3b"]
    assert options(wan) == dict(levels=schedule(50, 6.0), text_scale=3.0, motion_scale=1.5, solver="euler")
    assert options(track.sampled(25, "unipc")) == dict(levels=twice_shifted(25, 6.0), text_scale=3.0, motion_scale=1.5,
                                                       solver="unipc")
    assert wan.sampled() == wan and wan.sampled(7).sample_steps == 7
    with pytest.raises(ValueError, match="no solver called 'heun': use euler or unipc"):
        next(sample(straight, torch.zeros(1, 1, 4, 1, 1), None, solver="heun"))
