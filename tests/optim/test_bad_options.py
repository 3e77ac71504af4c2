"""λ and each option of optimisers and cells train, or end in an error that names the option."""

from math import inf, nan

import torch
from hypothesis import example, given
from hypothesis import strategies as st

import kron_plugin

kron_plugin.register()

from kron_plugin.criterions.soft_unitary import SoftUnitaryCriterion  # noqa: E402
from kron_plugin.models.baseline import BASELINES  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import KRUConfig  # noqa: E402
from kron_plugin.modules import CELLS  # noqa: E402
from kron_plugin.optim import factored  # noqa: E402
from kron_plugin.tasks.adding import AddingConfig, AddingTask  # noqa: E402

from ..fuzz import ends_well, fuzzed  # noqa: E402

FLOATS = st.floats() | st.floats(0, 2) | st.sampled_from([0.0, 1e39, nan, inf, -1e-9])
SIZES = st.integers(-2, 20) | st.sampled_from([10**5, 10**7, 2**31, 10**18])
TASK = AddingTask(AddingConfig(steps=3, train_examples=4, eval_examples=4))
TASK.load_dataset("train")
torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])  # the first optimiser takes seconds
BATCH = TASK.dataset("train").collater([TASK.dataset("train")[i] for i in range(4)])


@fuzzed
@given(FLOATS)
@example(1e39)  # infinite in single precision
def test_strengths_of_the_penalty(value):
    criterion = ends_well(SoftUnitaryCriterion, TASK, value, says="--unitary-penalty=")
    if criterion is not None:
        assert 0 <= value <= 1e6
        model = KRUModel.build_model(KRUConfig(hidden_size=4), TASK)
        loss, _, _ = criterion(model, BATCH)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@fuzzed
@given(
    st.sampled_from([factored.KronAdamConfig, factored.KronRMSpropConfig]),
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("factor_lr_scale", "bias_lr_scale", "weight_decay"), FLOATS)
    ),
    st.fixed_dictionaries(
        {}, optional={"kron_adam_betas": st.lists(FLOATS, max_size=3), "kron_adam_eps": FLOATS}
    ),
    st.fixed_dictionaries({}, optional={"rmsprop_decay": FLOATS, "rmsprop_eps": FLOATS}),
)
def test_optimisers(config, shared, of_adam, of_rmsprop):
    is_adam = config is factored.KronAdamConfig
    cfg = config(lr=[0.01], **shared, **(of_adam if is_adam else of_rmsprop))
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimiser = ends_well(factored.KronAdam if is_adam else factored.KronRMSprop, cfg, parameters)
    if optimiser is not None:
        assert all(0 <= number < 1e6 for number in shared.values())
        parameters[0].grad = torch.ones(3)
        optimiser.step()


@fuzzed
@given(
    st.sampled_from([*CELLS, *BASELINES]),
    st.fixed_dictionaries(
        {}, optional={"hidden_size": SIZES, "num_layers": st.integers(-2, 3) | st.just(10**9)}
    ),
    FLOATS,
)
def test_models(cell, sizes, dropout):
    cfg = KRUConfig(**{"cell": cell, "hidden_size": 8, "dropout": dropout, **sizes})
    model = ends_well(KRUModel.build_model, cfg, TASK)
    if model is not None:
        assert 0 <= dropout < 1
        assert model(**BATCH["net_input"]).isfinite().all()
