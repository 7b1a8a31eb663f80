"""Each objective against its scheduler's own arithmetic: a network that answers the target plays back the latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from encore.errors import InputError
from encore_diffusers.objectives import objective

N = 5


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 3, 7, generator=generator), torch.randn(N, 3, 7, generator=generator)


@pytest.mark.parametrize(
    "scheduler",
    [
        CosineDPMSolverMultistepScheduler(),
        EDMDPMSolverMultistepScheduler(prediction_type="epsilon"),
        EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0),
    ],
)
def test_preconditioned_target_is_denoised_to_the_latents(scheduler, drawn):
    latents, noise = drawn
    found = objective(scheduler)
    level = found.level(torch.linspace(0.05, 0.95, N))
    noised = latents + level[:, None, None] * noise
    torch.testing.assert_close(
        found.noisy(latents, noise, level), scheduler.precondition_inputs(noised, level[:, None, None])
    )
    target = found.target(latents, noise, level)
    denoised = scheduler.precondition_outputs(noised, target, level[:, None, None])
    torch.testing.assert_close(denoised, latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.timestep(level), scheduler.precondition_noise(level))


def test_stable_audios_levels_are_uniform_angles_and_its_target_is_v(drawn):
    latents, noise = drawn
    found = objective(CosineDPMSolverMultistepScheduler())
    share = torch.linspace(0.05, 0.95, N)
    level = found.level(share)
    torch.testing.assert_close(found.timestep(level), share)
    angle = share[:, None, None] * torch.pi / 2
    torch.testing.assert_close(found.noisy(latents, noise, level), angle.cos() * latents + angle.sin() * noise)
    torch.testing.assert_close(found.target(latents, noise, level), angle.cos() * noise - angle.sin() * latents)
    assert torch.isfinite(found.level(torch.tensor([1e-9, 1 - 1e-9]))).all()


def test_edms_levels_are_log_normal():
    share = torch.tensor([0.5, 0.8413447])  # of a normal: its mean, and one deviation above
    level = objective(EDMDPMSolverMultistepScheduler(sigma_min=1e-6)).level(share)
    torch.testing.assert_close(level.log(), torch.tensor([-1.2, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_discrete_target_is_denoised_to_the_latents(kind, drawn):
    latents, noise = drawn
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    found = objective(scheduler)
    level = found.level(torch.linspace(0, 0.999, N))
    assert level.tolist() == [0, 249, 499, 749, 999]
    noisy = found.noisy(latents, noise, level)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, level))
    target = found.target(latents, noise, level)
    if kind == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(latents, noise, level))
    scheduler.set_timesteps(1000)
    for i in (1, 3):
        step = scheduler.step(target[i : i + 1], level[i], noisy[i : i + 1])
        torch.testing.assert_close(step.pred_original_sample, latents[i : i + 1], rtol=1e-3, atol=1e-3)


def test_a_flow_runs_straight_to_the_latents(drawn):
    latents, noise = drawn
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    found = objective(scheduler, mean=-0.4)
    share = torch.linspace(0.05, 0.95, N)
    level = found.level(share)
    torch.testing.assert_close(level[2], torch.tensor(-0.4).sigmoid())
    noisy, target = found.noisy(latents, noise, level), found.target(latents, noise, level)
    for i in range(N):
        scheduler.set_timesteps(sigmas=[float(level[i])])
        torch.testing.assert_close(scheduler.timesteps[0], found.timestep(level)[i])
        played = scheduler.step(target[i : i + 1], scheduler.timesteps[0], noisy[i : i + 1]).prev_sample
        torch.testing.assert_close(played, latents[i : i + 1], rtol=1e-4, atol=1e-4)


def test_what_is_not_known_is_refused():
    with pytest.raises(InputError, match="prediction_type 'flow'"):
        objective(DDIMScheduler(prediction_type="flow"))
    with pytest.raises(InputError, match="prediction_type 'sample'"):
        objective(CosineDPMSolverMultistepScheduler(prediction_type="sample"))
    with pytest.raises(InputError, match="the scheduler object does not say"):
        objective(object())
    assert objective(LCMScheduler())  # has the same cumulated products as the others
