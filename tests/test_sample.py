import torch

from msk.flow import like, schedule
from msk.guidance import Condition, joint_guidance
from msk.sample import sample

TARGET = 2.0


def straight(x, t, text, motion=None, image=None, clip=None):
    """The exact velocity of data that is all one point."""
    return (x - TARGET) / like(t, x)


def steps_of(model, noise, **options):
    text = torch.zeros(len(noise), 1, 4)
    return list(sample(model, noise, Condition(text, None, None, text), **options))


def test_a_straight_flow_arrives_in_any_number_of_steps(close):
    noise = torch.randn(2, 3, 4, 4, 4)
    for steps in (1, 3, 10):
        last = steps_of(straight, noise, steps=steps)[-1]
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
