import pytest
import torch

from msk.flow import add_noise, exact_velocity, fewer, schedule, shift, to_x0


def test_the_velocity_leads_back_to_the_data(close):
    x0, noise, t = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4), torch.rand(2, 3)
    close(to_x0(add_noise(x0, noise, t), noise - x0, t), x0)


def test_zero_is_data_and_one_is_noise(close):
    x0, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    close(add_noise(x0, noise, torch.zeros(2, 3)), x0)
    close(add_noise(x0, noise, torch.ones(2)), noise)


def test_the_student_visits_the_levels_of_the_paper():
    assert schedule(3, 6.0) == pytest.approx([1.0, 0.92308, 0.75], abs=1e-4)       # 1000, 923.1, 750
    assert schedule(4, 5.0) == pytest.approx([1.0, 0.9375, 0.8333, 0.625], abs=1e-4)


def test_the_teachers_grid_holds_the_students_levels():
    for steps in (24, 48):
        assert set(schedule(3, 6.0)) <= set(schedule(steps, 6.0))


def test_a_shift_of_one_changes_nothing_and_ends_stay_ends():
    t = torch.linspace(0, 1, 11)
    assert torch.equal(shift(t, 1.0), t)
    assert shift(0.0, 6.0) == 0 and shift(1.0, 6.0) == 1


def test_a_schedule_needs_a_step():
    with pytest.raises(ValueError, match="0 steps"):
        schedule(0, 6.0)


def test_the_best_velocity_is_the_mean_over_all_lines_through_a_place(close):
    data = torch.tensor([[-1.0, 0.0], [2.0, 1.0]])
    alone = exact_velocity(torch.tensor([[0.3, 0.4]]), 0.5, data[:1])
    close(alone, (torch.tensor([[0.3, 0.4]]) - data[:1]) / 0.5)                    # one line only: its own velocity
    g, t = torch.Generator().manual_seed(0), 0.6
    x0, noise = data[torch.randint(2, (400_000,), generator=g)], torch.randn(400_000, 2, generator=g)
    place = torch.tensor([[0.2, 0.3]])
    through = (add_noise(x0, noise, torch.tensor(t).expand(len(x0))) - place).norm(dim=1) < 0.05
    close(exact_velocity(place, t, data)[0], (noise - x0)[through].mean(0), atol=0.1)


def test_fewer_levels_keep_the_first_and_the_last():
    levels = [1.0, 0.86, 0.6]
    assert fewer(levels, 3) == levels and fewer(levels, 2) == [1.0, 0.6] and fewer(levels, 1) == [1.0]
    assert fewer([1.0, 0.94, 0.83, 0.63], 3)[::2] == [1.0, 0.63]
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"{steps} of 3 noise levels were asked for: use 1 to 3"):
            fewer(levels, steps)
