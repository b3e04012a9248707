"""The optimizer: exact masters, exact state, decay, clipping, and agreement with torch's AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer_tui.engine.fast_split import join, random_bits, round_stochastically, split
from trainer_tui.engine.loading import plan_precision
from trainer_tui.engine.optimizer import AdamSettings, MasterAdamW, Moments, Precision
from trainer_tui.safety.errors import Corrupt, Refused

SETTINGS = AdamSettings(weight_decay=0.1)


class Small(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 24)
        self.input_norm = nn.LayerNorm(16)
        self.to(dtype)

    def set_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = noise.to(parameter.dtype)


def dtype_of(precision: Precision) -> torch.dtype:
    return torch.float32 if precision == "fp32" else torch.bfloat16


ALL_KINDS: list[tuple[Precision, Moments]] = [
    ("fp32", "float32"),
    ("split", "float32"),
    ("split", "bfloat16"),
    ("pure_bf16", "float32"),
]


def test_every_float32_survives_splitting() -> None:
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=generator, dtype=torch.int64)
    edges = torch.tensor([0, 0x8000, 0x7FFF, 0x3F808000, 0x3F807FFF, -0x40808000, 0x7F7F0000])
    masters = torch.cat([bits, edges]).to(torch.int32).view(torch.float32)
    masters = masters[masters.isfinite()]
    weight, low = split(masters)
    assert torch.equal(join(weight, low).view(torch.int32), masters.view(torch.int32))
    nearest = masters.to(torch.bfloat16)
    ties = low == -0x8000
    assert torch.equal(weight[~ties].view(torch.int16), nearest[~ties].view(torch.int16))


def test_the_split_optimizer_is_float32_adamw_on_the_master() -> None:
    model = Small(torch.bfloat16)
    master = Small(torch.bfloat16).float()
    optimizer = MasterAdamW(model, "split", SETTINGS)
    oracle = MasterAdamW(master, "fp32", SETTINGS)
    for step in range(20):
        model.set_gradients(step)
        for ours, theirs in zip(model.parameters(), master.parameters(), strict=True):
            theirs.grad = ours.grad.float()  # type: ignore[union-attr]
        optimizer.clip_and_step(1e-5, 7.0, 1.0)
        oracle.clip_and_step(1e-5, 7.0, 1.0)
    state = optimizer.state_tensors()
    for name, parameter in model.named_parameters():
        ours = join(parameter.data, state[f"{name}.low_half"])
        theirs = master.get_parameter(name)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
        assert not torch.equal(ours, Small(torch.bfloat16).get_parameter(name).float())


def test_small_learning_rates_move_split_masters_but_not_pure_bf16_weights() -> None:
    moved = {}
    for precision in ("split", "pure_bf16"):
        model = Small(torch.bfloat16)
        before = model.layer.weight.detach().clone()
        optimizer = MasterAdamW(model, precision)  # type: ignore[arg-type]
        model.set_gradients(0)
        optimizer.clip_and_step(1e-6, 1.0, 0.0)
        if precision == "split":
            low = optimizer.state_tensors()["layer.weight.low_half"]
            changed = join(model.layer.weight.data, low) != before.float()
        else:
            changed = model.layer.weight != before
        moved[precision] = changed.float().mean().item()
    assert moved["split"] > 0.99
    assert moved["pure_bf16"] < 0.2


@pytest.mark.parametrize(("precision", "moments"), ALL_KINDS)
def test_state_round_trip_continues_bit_for_bit(precision: Precision, moments: Moments) -> None:
    def run(interrupt: bool) -> list[torch.Tensor]:
        model = Small(dtype_of(precision))
        optimizer = MasterAdamW(model, precision, SETTINGS, moments)
        for step in range(6):
            if interrupt and step == 3:
                weights = {n: t.clone() for n, t in model.state_dict().items()}
                saved = {n: t.clone() for n, t in optimizer.state_tensors().items()}
                model = Small(dtype_of(precision))
                model.load_state_dict(weights)
                optimizer = MasterAdamW(model, precision, SETTINGS, moments)
                optimizer.load_state_tensors(saved)
            model.set_gradients(step)
            optimizer.clip_and_step(1e-3, 3.0, 1.0)
        return [*model.state_dict().values(), *optimizer.state_tensors().values()]

    for whole, resumed in zip(run(False), run(True), strict=True):
        assert whole.dtype == resumed.dtype
        assert torch.equal(whole, resumed)


@pytest.mark.parametrize(("precision", "moments"), ALL_KINDS)
def test_one_that_forgot_goes_on_like_a_new_one(precision: Precision, moments: Moments) -> None:
    """What a version without its optimizer is loaded into, in every precision."""
    model = Small(dtype_of(precision))
    optimizer = MasterAdamW(model, precision, SETTINGS, moments)

    def train(model: Small, optimizer: MasterAdamW) -> list[torch.Tensor]:
        for step in range(3):
            model.set_gradients(step)
            optimizer.clip_and_step(1e-2, 2.0, 1.0)
            optimizer.zero_grad()
        state = optimizer.state_tensors()
        return [*model.state_dict().values(), *(state[name] for name in sorted(state))]

    train(model, optimizer)
    model.load_state_dict(Small(dtype_of(precision)).state_dict())  # into the same tensors
    optimizer.forget()
    fresh = Small(dtype_of(precision))
    again = train(model, optimizer)
    new = train(fresh, MasterAdamW(fresh, precision, SETTINGS, moments))
    assert all(torch.equal(one, other) for one, other in zip(again, new, strict=True))


def test_a_missing_surplus_or_recast_tensor_is_refused_by_name() -> None:
    optimizer = MasterAdamW(Small())
    saved = {n: t.clone() for n, t in optimizer.state_tensors().items()}
    del saved["layer.weight.exp_avg"]
    saved["layer.bias.exp_avg_sq"] = saved["layer.bias.exp_avg_sq"].to(torch.bfloat16)
    saved["stranger"] = torch.zeros(1)
    with pytest.raises(Corrupt) as caught:
        optimizer.load_state_tensors(saved)
    for part in ("layer.weight.exp_avg is missing", "layer.bias.exp_avg_sq is", "stranger is not"):
        assert part in caught.value.message


@pytest.mark.parametrize(("precision", "moments"), ALL_KINDS)
def test_norms_and_biases_are_not_decayed(precision: Precision, moments: Moments) -> None:
    model = Small(dtype_of(precision))
    with torch.no_grad():
        model.layer.bias.fill_(1.0)
    optimizer = MasterAdamW(model, precision, AdamSettings(weight_decay=0.5), moments)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.clip_and_step(0.1, 1.0, 1.0)
    after = dict(model.named_parameters())
    assert torch.equal(after["layer.bias"], before["layer.bias"])
    assert torch.equal(after["input_norm.weight"], before["input_norm.weight"])
    assert (after["layer.weight"].abs() < before["layer.weight"].abs()).float().mean() > 0.9


def test_clipping_is_that_of_clip_grad_norm() -> None:
    model, plain = Small(), Small()
    optimizer = MasterAdamW(model)
    oracle = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(4):
        model.set_gradients(step)
        plain.set_gradients(step)
        for parameter in plain.parameters():
            parameter.grad /= 5.0  # type: ignore[operator]
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        stats = optimizer.clip_and_step(1e-2, torch.tensor(5.0), 0.5)
        oracle.step()
        torch.testing.assert_close(stats.grad_norm, expected)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_stochastic_rounding_keeps_the_mean() -> None:
    values = torch.full((100_000,), 1.0 + 2**-9)  # a quarter of the way to the next bf16
    rounded = round_stochastically(values, random_bits(3, 5, len(values)))
    assert set(rounded.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert abs(rounded.float().mean().item() - (1.0 + 2**-9)) < 1e-4


def test_parameters_of_another_type_are_refused() -> None:
    with pytest.raises(Refused, match="needs torch"):
        MasterAdamW(Small(), "split")


@pytest.mark.parametrize("precision", ["auto", "master", "lean", "fp32", "pure_bf16"])
def test_every_precision_a_config_may_name_can_train(precision: str) -> None:
    plan = plan_precision(precision, torch.device("cuda"))  # planned for a card, made on the CPU
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)).to(plan.weights)
    optimizer = MasterAdamW(model, plan.optimizer, moments=plan.moments)
    before = model[1].weight.detach().float().clone()
    model(torch.tensor([3])).float().sum().backward()
    optimizer.clip_and_step(1e-2, 1.0, 1.0)
    assert not torch.equal(before, model[1].weight.detach().float())
