"""Steps of the optimizer against PyTorch's own, and against what the recipes promise."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lichen.errors import LichenError
from lichen.nn.roles import Role
from lichen.optim import Muon, OptimizerRecipe, Override, ParameterTable, parameter_table, recipes, rules
from lichen.optim.newton_schulz import Form, newton_schulz
from lichen.optim.table import Row

SHAPES = {"wide": (32, 96), "tall": (96, 32), "square": (48, 48), "thin": (8, 256)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one(parameter: Tensor, role: Role, recipe: OptimizerRecipe) -> tuple[nn.Parameter, Muon]:
    weight = nn.Parameter(parameter.clone(memory_format=torch.preserve_format))
    return weight, Muon(ParameterTable((Row("weight", weight, role),)), recipe)


def first_update(gradient: Tensor, role: Role, recipe: OptimizerRecipe) -> Tensor:
    """What one step from zero weights adds, divided by the learning rate and negated."""
    weight, optimizer = one(torch.zeros_like(gradient), role, recipe)
    weight.grad = gradient.clone()
    optimizer.step()
    return -weight.detach() / recipe.lr


def spread(matrix: Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values.max() / values.min())


# ------------------------------------------------------------------------------------- against PyTorch


@pytest.mark.parametrize(
    ("recipe", "adjust"), [(recipes.moonlight, "match_rms_adamw"), (recipes.muon, "original")]
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_agrees_with_torch_optim_muon(recipe: OptimizerRecipe, adjust: str, nesterov: bool) -> None:
    recipe = replace(recipe, lr=0.01, weight_decay=0.3, nesterov=nesterov)
    ours = {name: nn.Parameter(random(*shape)) for name, shape in SHAPES.items()}
    theirs = {name: nn.Parameter(weight.detach().clone()) for name, weight in ours.items()}
    optimizer = Muon(ParameterTable(tuple(Row(n, p, Role("matrix")) for n, p in ours.items())), recipe)
    reference = torch.optim.Muon(
        theirs.values(), lr=0.01, weight_decay=0.3, nesterov=nesterov, adjust_lr_fn=adjust
    )
    for step in range(4):
        for name, shape in SHAPES.items():
            ours[name].grad = random(*shape, seed=step + 1)
            theirs[name].grad = random(*shape, seed=step + 1)
        optimizer.step()
        reference.step()
    for name in SHAPES:
        start = random(*SHAPES[name]) * (1 - 0.01 * 0.3) ** 4
        moved = theirs[name].detach() - start
        difference = (ours[name].detach() - theirs[name].detach()).norm()
        assert difference < 0.03 * moved.norm(), name  # both round to bf16 in every product


def test_adamw_is_torchs_bit_for_bit() -> None:
    recipe = replace(recipes.adamw, lr=0.01, adamw_betas=(0.8, 0.9), adamw_eps=1e-5)
    shapes = {"matrix": (9, 7), "embedding": (11, 5), "norm": (6,)}
    ours = {name: nn.Parameter(random(*shape)) for name, shape in shapes.items()}
    theirs = {name: nn.Parameter(weight.detach().clone()) for name, weight in ours.items()}
    optimizer = Muon(ParameterTable(tuple(Row(n, p, Role(n)) for n, p in ours.items())), recipe)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["matrix"], theirs["embedding"]]},
            {"params": [theirs["norm"]], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-5,
        weight_decay=0.1,
        fused=True,
    )
    for step in range(5):
        for name, shape in shapes.items():
            ours[name].grad = random(*shape, seed=step + 1)
            theirs[name].grad = random(*shape, seed=step + 1)
        optimizer.step()
        reference.step()
    for name in shapes:
        assert torch.equal(ours[name], theirs[name])


def test_tiny_adamw_epsilon() -> None:
    """DeepSeek-V4's 1e-20: a gradient far below 1e-8 still moves a weight by the learning rate."""
    weight, optimizer = one(torch.zeros(3), Role("vector"), recipes.deepseek_v4)
    weight.grad = torch.tensor([1e-12, -1e-12, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight / recipes.deepseek_v4.lr, torch.tensor([-1.0, 1.0, 0.0]))


# --------------------------------------------------------------------------------- size of the update


@pytest.mark.parametrize("recipe", [recipes.moonlight, recipes.muonclip])
@pytest.mark.parametrize("shape", [(96, 128), (128, 256), (256, 256), (704, 256)])
def test_five_keller_jordan_steps_fall_a_little_short(
    shape: tuple[int, int], recipe: OptimizerRecipe
) -> None:
    update = first_update(random(*shape), Role("matrix"), recipe)
    assert 0.85 < float(update.square().mean().sqrt()) / 0.2 < 0.97


@pytest.mark.parametrize("shape", SHAPES.values())
def test_ten_deepseek_v4_steps_have_the_nominal_root_mean_square(shape: tuple[int, int]) -> None:
    update = first_update(random(*shape), Role("matrix"), recipes.deepseek_v4)
    assert float(update.square().mean().sqrt()) / 0.18 == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize(("shape", "scale"), [((64, 16), 2.0), ((16, 64), 1.0)])
def test_keller_jordans_scale(shape: tuple[int, int], scale: float) -> None:
    values = torch.linalg.svdvals(first_update(random(*shape), Role("matrix"), recipes.muon))
    assert 0.6 * scale < values.min()
    assert values.max() < 1.21 * scale


def test_update_does_not_depend_on_the_size_of_the_gradient() -> None:
    gradient = random(16, 40)
    small = first_update(gradient * 2.0**-10, Role("matrix"), recipes.moonlight)
    torch.testing.assert_close(
        small, first_update(gradient, Role("matrix"), recipes.moonlight), rtol=0.02, atol=0.02
    )


def test_balanced_updates_of_embeddings() -> None:
    """Tokens that occurred all move by 0.18, whatever their gradients; the others stay."""
    gradient = random(40, 16) * random(40, 1, seed=1).exp() * random(1, 16, seed=2).exp()
    gradient[::4] = 0
    gradient[1] *= 1e-6
    update = first_update(gradient, Role("embedding"), recipes.deepseek_v4_1)
    size = update.square().mean(1).sqrt()
    torch.testing.assert_close(size[2::4], torch.full((10,), 0.18))
    torch.testing.assert_close(size[3::4], torch.full((10,), 0.18))
    assert not update[::4].any()
    assert not update[1].any()
    channels = update.square().mean(0).sqrt()
    assert channels.max() / channels.min() < 1.01
    assert gradient.square().mean(0).max() / gradient.square().mean(0).min() > 5
    assert torch.equal(update.sign(), gradient.sign() * (size > 0).unsqueeze(1))
    stacked = first_update(gradient.view(1, 5, 8, 16), Role("embedding"), recipes.deepseek_v4_1)
    assert torch.equal(stacked.view_as(update), update)  # a table of positions may have more dimensions


# ---------------------------------------------------------------------------------- which matrices


def test_every_expert_is_orthogonalised_by_itself() -> None:
    """Experts whose gradients differ a thousandfold all get a full update, gate and up apart."""
    gradient = random(4, 32, 64) * torch.tensor([1.0, 1e-3, 30.0, 0.1]).view(4, 1, 1)
    gradient[:, 16:] *= 50
    stack = first_update(gradient, Role("matrix", splits=(16, 16)), recipes.deepseek_v4)
    for expert in stack:
        assert spread(expert[:16]) < 1.02
        assert spread(expert[16:]) < 1.02
        # As one matrix the two halves would have been made orthogonal to each other.
        assert (expert[:16] @ expert[16:].T).abs().max() > 0.1 * (expert[:16] @ expert[:16].T).max()
    fused = first_update(gradient, Role("matrix"), recipes.deepseek_v4)
    assert all(spread(expert) < 1.02 for expert in fused)


def test_a_stack_equals_its_matrices_one_by_one() -> None:
    gradient = random(5, 12, 20)
    stack = first_update(gradient, Role("matrix"), recipes.moonlight)
    for expert, own in zip(stack, gradient, strict=True):
        torch.testing.assert_close(expert, first_update(own, Role("matrix"), recipes.moonlight))


@pytest.mark.parametrize("layout", ["columns", "kernel"])
def test_other_layouts_hold_the_same_matrices(layout: str) -> None:
    gradient = random(2, 12, 20) if layout == "columns" else random(12, 5, 2, 2)
    plain = gradient.mT.contiguous() if layout == "columns" else gradient.flatten(1)
    expected = first_update(plain, Role("matrix"), recipes.moonlight)
    got = first_update(gradient, Role("matrix", layout=layout), recipes.moonlight)
    torch.testing.assert_close(got.mT if layout == "columns" else got.flatten(1), expected)


def test_channels_last_kernels_are_updated_in_place() -> None:
    gradient = random(8, 6, 3, 3)
    expected = first_update(gradient, Role("matrix", layout="kernel"), recipes.moonlight)
    role = Role("matrix", layout="kernel")
    weight, optimizer = one(
        torch.zeros(8, 6, 3, 3).to(memory_format=torch.channels_last), role, recipes.moonlight
    )
    for _ in range(2):
        weight.grad = gradient.clone()  # contiguous, unlike the weight
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(-weight.detach() / recipes.moonlight.lr, 2 * expected, rtol=0.05, atol=0.05)
    momentum = optimizer.named_state()["weight"]["momentum_buffer"]
    torch.testing.assert_close(momentum, 1.95 * gradient)


def test_heads_one_by_one() -> None:
    recipe = replace(recipes.deepseek_v4, per_head=True)
    gradient = random(4, 8, 24) * torch.tensor([1.0, 20.0, 0.01, 3.0]).view(4, 1, 1)
    update = first_update(gradient.view(32, 24), Role("matrix", heads=4), recipe).view(4, 8, 24)
    assert all(spread(head) < 1.02 for head in update)
    torch.testing.assert_close(update.square().mean((1, 2)).sqrt(), torch.full((4,), 0.18), rtol=3e-3, atol=0)


def test_batches_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = random(7, 24, 16)
    role = Role("matrix", splits=(8, 16))
    whole = first_update(gradient, role, recipes.moonlight)
    for entries in (1, 3 * 8 * 16, 5 * 16 * 16):
        monkeypatch.setitem(rules.CHUNK_ENTRIES, "cpu", entries)
        torch.testing.assert_close(first_update(gradient, role, recipes.moonlight), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (48, 48)])
def test_small_learning_rates_do_not_underflow_in_fp16(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """The format of GPUs, whose smallest number is 6e-8."""
    recipe = replace(recipes.moonlight, lr=1e-9)
    exact = 0.2 * max(shape) ** 0.5 * newton_schulz(random(*shape).double(), recipe.ns_schedule).float()
    monkeypatch.setattr(rules, "form_for", lambda *_: Form(torch.float16, 3, transpose=False))
    update = first_update(random(*shape), Role("matrix"), recipe)
    assert (update - exact).norm() < 0.02 * exact.norm()


# ------------------------------------------------------------------------------------- small gradients


@pytest.mark.parametrize("recipe", [recipes.moonlight, recipes.muonclip, recipes.deepseek_v4])
def test_an_expert_without_gradient_only_decays(recipe: OptimizerRecipe) -> None:
    start = random(3, 8, 12)
    weight, optimizer = one(start, Role("matrix"), recipe)
    gradient = random(3, 8, 12, seed=1)
    gradient[1] = 0
    weight.grad = gradient
    optimizer.step()
    decayed = start * (1 - recipe.lr * recipe.weight_decay)
    torch.testing.assert_close(weight[1], decayed[1], rtol=1e-6, atol=0)
    assert not torch.equal(weight[0], decayed[0])


@pytest.mark.parametrize("recipe", [recipes.moonlight, recipes.muonclip])
def test_a_vanishing_gradient_makes_a_small_update(recipe: OptimizerRecipe) -> None:
    update = first_update(random(32, 64) * 1e-12, Role("matrix"), recipe)
    assert update.isfinite().all()
    assert recipe.update_rms is not None
    assert float(update.square().mean().sqrt()) < 0.1 * recipe.update_rms


def test_parameters_without_gradient_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = Muon(parameter_table(model), recipes.moonlight)
    before = [p.detach().clone() for p in model.parameters()]
    model[0].weight.grad = random(4, 4)
    optimizer.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == [True, False, False, False, False, False]
    assert list(optimizer.named_state()) == ["0.weight"]


# ----------------------------------------------------------------------------------- low precision


@pytest.mark.parametrize("nesterov", [False, True])
def test_bf16_matrices_keep_their_momentum_in_fp32(nesterov: bool) -> None:
    """In PyTorch 2.13 torch.optim.Muon normalises this very buffer in place when nesterov is off."""
    recipe = replace(recipes.moonlight, lr=0.01, nesterov=nesterov)
    start, gradients = random(8, 12).bfloat16(), [random(8, 12, seed=s).bfloat16() for s in (1, 2)]
    weight, optimizer = one(start, Role("matrix"), recipe)
    master, reference = one(start.float(), Role("matrix"), recipe)
    for gradient in gradients:
        weight.grad, master.grad = gradient.clone(), gradient.float()
        optimizer.step()
        reference.step()
        assert torch.equal(weight, master.bfloat16())
        master.data.copy_(weight)  # a bf16 weight remembers only what rounding leaves
    momentum = optimizer.named_state()["weight"]["momentum_buffer"]
    assert momentum.dtype == torch.float32
    torch.testing.assert_close(momentum, 0.95 * gradients[0].float() + gradients[1].float())


def test_bf16_vectors_are_rounded_once() -> None:
    recipe = replace(recipes.adamw, lr=0.1)
    start = random(50).bfloat16()
    weight, optimizer = one(start, Role("embedding"), recipe)
    master = nn.Parameter(start.float())
    reference = torch.optim.AdamW([master], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(3):
        gradient = random(50, seed=step + 1).bfloat16()
        weight.grad, master.grad = gradient.clone(), gradient.float()
        optimizer.step()
        reference.step()
        assert torch.equal(weight, master.bfloat16())
        master.data.copy_(weight)


# ---------------------------------------------------------------------------------- as an optimizer


def test_closure_and_gradient_clipping() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    x, y = random(64, 6), random(64, 6, seed=1).sum(1, keepdim=True)
    optimizer = Muon(parameter_table(model), replace(recipes.moonlight, lr=0.02, weight_decay=0.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss

    losses = [optimizer.step(closure).item() for _ in range(200)]
    assert losses[-1] < 0.1 * losses[0]


def test_torch_schedulers_drive_it() -> None:
    recipe = replace(recipes.muon, weight_decay=0.0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    optimizer = Muon(parameter_table(model), recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        lrs = {name: g["lr"] for g in optimizer.param_groups for name in g["param_names"]}
        assert lrs == pytest.approx({"0.weight": 0.02 * 0.5**step, "1.weight": 3e-4 * 0.5**step})
        before = model[0].weight.detach().clone()
        model[0].weight.grad = random(4, 4)
        optimizer.step()
        moved = torch.linalg.svdvals(model[0].weight.detach() - before)
        assert moved.max() < 1.21 * lrs["0.weight"]
        assert moved.max() > 0.6 * lrs["0.weight"]
        scheduler.step()


def test_more_parameters_can_be_added() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 6)
    optimizer = Muon(parameter_table(first), recipes.moonlight)
    named = [(f"second.{name}", p) for name, p in second.named_parameters()]
    optimizer.add_param_group({"params": named, "lr": 0.5, "weight_decay": 0.0})
    before = second.weight.detach().clone()
    second.weight.grad = random(6, 4)
    optimizer.step()
    torch.testing.assert_close(
        before - second.weight.detach(),
        0.5 * first_update(random(6, 4), Role("matrix"), recipes.moonlight),
        rtol=0.01,
        atol=1e-3,
    )
    with pytest.raises(LichenError, match=r"second\.weight is already in the optimizer"):
        optimizer.add_param_group({"params": named})
    with pytest.raises(LichenError, match="state is kept by name"):
        optimizer.add_param_group({"params": list(nn.Linear(2, 2).parameters())})


def test_state_of_a_matrix_is_half_of_adamws() -> None:
    sizes = {}
    for recipe in (recipes.moonlight, recipes.adamw):
        weight, optimizer = one(torch.zeros(16, 32), Role("matrix"), recipe)
        assert optimizer.state_bytes() == 0
        weight.grad = random(16, 32)
        optimizer.step()
        sizes[recipe.name] = optimizer.state_bytes()
    assert sizes == {"moonlight": 16 * 32 * 4, "adamw": 2 * 16 * 32 * 4 + 4}


def test_parameters_without_a_table_are_refused() -> None:
    model = nn.Linear(2, 2)
    for wrong in (model, model.parameters(), list(model.named_parameters())):
        with pytest.raises(LichenError, match=r"give it parameter_table\(model\)"):
            Muon(wrong)  # type: ignore[arg-type]


def test_a_compiled_model_and_a_compiled_step() -> None:
    """The table of a compiled model has the plain names, and the step itself can be compiled."""
    plain, batch = model_and_batch()
    other, _ = model_and_batch()
    compiled = torch.compile(other, backend="eager")
    optimizers = [Muon(parameter_table(model), recipes.moonlight) for model in (plain, compiled)]
    train(plain, optimizers[0], batch, 2)
    optimizers[1].step = torch.compile(optimizers[1].step, backend="eager")  # type: ignore[method-assign]
    train(compiled, optimizers[1], batch, 2)
    assert optimizers[0].named_state().keys() == optimizers[1].named_state().keys()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter)


def test_what_cannot_be_updated_is_refused() -> None:
    with pytest.raises(LichenError, match="no parameter that requires a gradient"):
        Muon(parameter_table(nn.ReLU()), recipes.moonlight)


def test_a_step_is_all_or_nothing() -> None:
    """A sparse gradient is found before anything is applied, and the step can be repeated without it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Embedding(4, 3, sparse=True))
    optimizer = Muon(parameter_table(model, [Override("1.*", lr_scale=0.5)]), recipes.moonlight)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (model[:2](random(2, 3)).sum() + model[2](torch.tensor([1])).sum()).backward()
    with pytest.raises(LichenError, match=r"2\.weight has a sparse gradient.*nothing was updated"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert not optimizer.state
    model[2].weight.grad = None
    optimizer.step()
    assert not torch.equal(before[0], model[0].weight)


def test_layers_that_are_unfrozen_later_are_trained() -> None:
    """As torch.optim.AdamW(model.parameters()) does, with the same groups and the state of a saved run."""
    model, batch = model_and_batch()
    model[1].requires_grad_(False)
    optimizer = Muon(parameter_table(model), recipes.moonlight)
    before = model[1].weight.detach().clone()
    train(model, optimizer, batch, 1)
    assert "1.weight" not in optimizer.named_state()
    saved = optimizer.state_dict()
    model[1].requires_grad_(True)
    train(model, optimizer, batch, 1)
    update = first_update(model[1].weight.grad, Role("matrix"), recipes.moonlight)
    expected = before * (1 - 3e-4 * 0.1) - 3e-4 * update
    torch.testing.assert_close(model[1].weight.detach(), expected, rtol=0, atol=1e-6)
    optimizer.load_state_dict(saved)
    assert "1.weight" not in optimizer.named_state()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and less than 1"),
        ({"ns_schedule": ()}, "ns_schedule"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"qk_clip_tau": 0.0}, "qk_clip_tau is 0.0"),
        ({"decayed": ("weights",)}, "decayed"),
    ],
)
def test_recipes_check_their_numbers(change: dict[str, object], words: str) -> None:
    with pytest.raises(LichenError, match=f"optimizer 'moonlight'.*{words}"):
        replace(recipes.moonlight, **change)


# --------------------------------------------------------------------------------------------- state


def model_and_batch() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Embedding(20, 16), nn.Linear(16, 32), nn.RMSNorm(32), nn.Linear(32, 16), nn.Linear(16, 20)
    )
    return model, torch.randint(0, 20, (4, 8), generator=torch.Generator().manual_seed(4))


def train(model: nn.Module, optimizer: Muon, batch: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "recipe", [recipes.moonlight, recipes.muonclip, recipes.adamw, recipes.deepseek_v4_1]
)
def test_state_moves_into_another_grouping_bit_for_bit(recipe: OptimizerRecipe) -> None:
    model, batch = model_and_batch()
    optimizer = Muon(parameter_table(model), recipe)
    train(model, optimizer, batch, 3)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * 0.3
    saved = optimizer.state_dict()

    other, _ = model_and_batch()
    other.load_state_dict(model.state_dict())
    rows = parameter_table(other).rows
    regrouped = Muon(ParameterTable(rows[3:]), recipe)
    for row in rows[:3]:
        regrouped.add_param_group({"params": ParameterTable((row,))})
    assert len(regrouped.param_groups) > len(optimizer.param_groups)
    regrouped.load_state_dict(saved)
    assert {group["lr"] for group in regrouped.param_groups} == {recipe.lr * 0.3}

    train(model, optimizer, batch, 3)
    train(other, regrouped, batch, 3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_a_deep_copy_goes_on_by_itself() -> None:
    model, batch = model_and_batch()
    optimizer = Muon(parameter_table(model), recipes.moonlight)
    train(model, optimizer, batch, 1)
    other, copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, batch, 2)
    train(other, copied, batch, 2)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_groups_are_cut_as_they_were_saved() -> None:
    """Unless a scheduler drives them already, which would not know the new ones."""
    model, batch = model_and_batch()
    optimizer = Muon(parameter_table(model, [Override("1.weight", lr_scale=4.0)]), recipes.moonlight)
    train(model, optimizer, batch, 1)
    saved = optimizer.state_dict()
    joined = Muon(parameter_table(model), recipes.moonlight)
    assert len(joined.param_groups) == 1
    joined.load_state_dict(saved)
    assert {name: g["lr"] for g in joined.param_groups for name in g["param_names"]} == {
        name: 1.2e-3 if name == "1.weight" else 3e-4 for name, _ in model.named_parameters()
    }
    train(model, joined, batch, 1)

    driven = Muon(parameter_table(model), recipes.moonlight)
    torch.optim.lr_scheduler.ConstantLR(driven)
    with pytest.raises(LichenError, match="load the state first, then make the scheduler"):
        driven.load_state_dict(saved)
    assert not driven.state


def test_state_that_is_not_this_models_is_refused() -> None:
    model, batch = model_and_batch()
    optimizer = Muon(parameter_table(model), recipes.moonlight)
    train(model, optimizer, batch, 1)
    saved = optimizer.state_dict()

    bigger = Muon(parameter_table(model), recipes.moonlight)
    bigger.add_param_group({"params": [("added.weight", nn.Parameter(torch.zeros(2, 2)))]})
    with pytest.raises(LichenError, match=r"nothing is saved for added\.weight"):
        bigger.load_state_dict(saved)
    with pytest.raises(LichenError, match=r"4\.bias, 4\.weight is not in this optimizer"):
        Muon(parameter_table(model[:4]), recipes.moonlight).load_state_dict(saved)
    with pytest.raises(LichenError, match=r"recipe 'adamw' needs exp_avg, exp_avg_sq, step"):
        Muon(parameter_table(model), recipes.adamw).load_state_dict(saved)
    reshaped = nn.Sequential(*model)
    reshaped[1] = nn.Linear(16, 33)
    with pytest.raises(LichenError, match=r"1\.weight has shape \(32, 16\), the parameter \(33, 16\)"):
        Muon(parameter_table(reshaped), recipes.moonlight).load_state_dict(saved)
