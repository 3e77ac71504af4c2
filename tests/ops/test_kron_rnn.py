"""Every fast backend of the recurrence against the definition, and against a dense matrix."""

import math
import sys

import pytest
import torch

from kron_plugin.ops import available_backends, kron_rnn

from .recurrence_cases import PAIRS, cast, dense_rnn, placed, random_case, run, worst_error

FAST = [name for name in available_backends() if name != "reference"]
if torch.cuda.is_available():
    FAST.append("cuda")
fast = pytest.mark.parametrize("backend", FAST)

# What to vary together: (batch, steps, form, with_lengths, options). Every batch size beside and
# between the widths of vectors; one, two and many steps; each way of keeping states.
SETTINGS = [
    (1, 2, "dense", False, {}),
    (3, 63, "features", True, {"checkpoint_every": 8}),
    (16, 1, "tokens", False, {"need_output": False}),
    (20, 2, "dense", True, {"need_output": False, "checkpoint_every": 2}),
    (33, 5, "tokens", True, {}),
    (33, 3, "features", False, {"need_output": False}),
]
KINDS = [
    (True, "modrelu"),
    (True, "identity"),
    (False, "modrelu"),
    (False, "tanh"),
    (False, "identity"),
]


def test_a_fast_backend_is_here():
    assert "cpu" in FAST, "these tests need a C++ compiler"


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_matches_a_dense_matrix(name, kind):
    is_complex, activation = kind
    case = random_case(
        PAIRS[name], 3, 4, is_complex=is_complex, activation=activation, with_lengths=True
    )
    assert worst_error(run(case, backend="reference"), run(case, dense_rnn)) < 1e-11


@fast
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("setting", range(len(SETTINGS)))
def test_matches_a_dense_matrix(backend, name, setting):
    batch, steps, form, with_lengths, options = SETTINGS[setting]
    is_complex, activation = KINDS[(setting + list(PAIRS).index(name)) % len(KINDS)]
    if max(max(pair) for pair in PAIRS[name]) > 100:
        steps = min(steps, 9)
    case = random_case(
        PAIRS[name], batch, steps, torch.float64, is_complex, activation, form, with_lengths
    )
    results = run(case, backend=backend, **options)
    if options.get("need_output", True):
        expected = run(case, dense_rnn)
    else:
        expected = run(case._replace(d_states=torch.zeros_like(case.d_states)), dense_rnn)[1:]
    assert worst_error(results, expected) < 1e-11


@fast
@pytest.mark.parametrize("form", ["dense", "features", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_as_exact_as_the_reference(backend, kind, form):
    is_complex, activation = kind
    case = random_case(
        batch=21,
        steps=5,
        is_complex=is_complex,
        activation=activation,
        form=form,
        with_lengths=True,
    )
    expected = run(case, backend="reference")
    single = cast(case, torch.float32)
    usual = worst_error(run(single, backend="reference"), expected)
    assert worst_error(run(single, backend=backend), expected) < 3 * usual + 1e-5


@fast
@pytest.mark.parametrize("is_complex", [True, False])
@pytest.mark.parametrize("name", ["2x2s", "wide first", "mixed"])
def test_gradcheck(backend, name, is_complex):
    shapes = {"2x2s": [(2, 2)] * 3, "wide first": [(2, 4), (4, 2)], "mixed": [(2, 2), (3, 3)]}[name]
    case = random_case(shapes, 3, 3, is_complex=is_complex, form="features", with_lengths=True)
    case = placed(case, backend)
    count = len(shapes)

    def function(x, bias, h0, weight, *factors):
        assert len(factors) == count
        return kron_rnn(x, factors, bias, h0, case.lengths, weight=weight, backend=backend)

    assert torch.autograd.gradcheck(
        function, (case.x, case.bias, case.h0, case.weight, *case.factors)
    )


@fast
@pytest.mark.parametrize("is_complex", [True, False])
@pytest.mark.parametrize(
    ("first", "tolerance"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 1e-12),
        ([[0.0, 1.0], [-1.0, 0.0]], 1e-12),  # no diagonal: rows are swapped
        ([[1.0, 1.0], [1.0, 0.99]], 1e-9),  # condition 400: still solved for
        ([[1.0, 1.0], [1.0, 1.0 + 1e-9]], 1e-9),  # nearly singular: stage by stage
        ([[1.0, 0.0], [1.0, 0.0]], 1e-12),  # singular, no pivots
        ([[0.0, 0.0], [0.0, 0.0]], 1e-12),
        ([[1e-3, 1.0], [0.0, 1e-3]], 1e-10),  # all pivots tiny
    ],
)
def test_factors_far_from_unitary(backend, first, tolerance, is_complex):
    case = random_case(batch=5, steps=3, is_complex=is_complex)
    element = case.factors[0].dtype
    factor = torch.tensor(first, dtype=torch.float64).to(element).requires_grad_()
    for place in (0, 3, 6):
        factors = list(case.factors)
        factors[place] = factor
        changed = case._replace(factors=factors)
        assert worst_error(run(changed, backend=backend), run(changed, dense_rnn)) < tolerance


@fast
@pytest.mark.parametrize("off", [-100.0, -math.inf])
def test_dead_units_have_no_gradient_and_zero_states_no_direction(backend, off):
    case = random_case(batch=3, steps=4)
    with torch.no_grad():
        case.bias[:64] = off  # relu is off
        case.bias[64:] = 0.5
        case.h0.zero_()
        case.x[0].zero_()  # so z = 0 at the first step, and stays 0 until there is input
    results, expected = run(case, backend=backend), run(case, backend="reference")
    assert worst_error(results, expected) < 1e-11
    assert all(
        torch.isfinite(torch.view_as_real(r) if r.is_complex() else r).all() for r in results
    )


@fast
@pytest.mark.parametrize("bias", [-5.0, 0.0])
def test_gradients_are_finite_where_modrelu_has_its_edge(backend, bias):
    """|z| = −b at the first step, and z = 0 at the second."""
    case = random_case([(2, 2)], batch=2, steps=2)
    with torch.no_grad():
        case.h0.zero_()
        case.bias.fill_(bias)
        case.x[0] = torch.tensor([3.0, 3.0, 4.0, 4.0]) if bias else 0.0
        case.x[1] = 0.0
    results, expected = run(case, backend=backend), run(case, backend="reference")
    assert worst_error(results, expected) < 1e-11
    assert all(
        torch.isfinite(torch.view_as_real(r) if r.is_complex() else r).all() for r in results
    )


@fast
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_what_is_not_finite_stays_so(backend, bad, kind):
    is_complex, activation = kind
    case = random_case(batch=3, steps=6, is_complex=is_complex, activation=activation)
    with torch.no_grad():
        case.x[2, 1, 5] = bad
        for name in (backend, "reference"):
            here = placed(case, name)
            states, last = kron_rnn(
                here.x, here.factors, here.bias, here.h0, activation=activation, backend=name
            )
            finite = states.isfinite().all(2)
            assert finite[:2].all()
            assert finite[:, [0, 2]].all()
            assert not finite[2:, 1].any()
            assert not last[1].isfinite().all()


@fast
@pytest.mark.parametrize("name", ["2x2s", "tall first"])
def test_checkpoints_change_nothing(backend, name):
    case = random_case(PAIRS[name], batch=5, steps=11, with_lengths=True)
    plain = run(case, backend=backend)
    # On a GPU the sums over steps are made segment by segment.
    exact = 3 if backend == "cuda" else len(plain)
    for every in (2, 3, 11, 100):
        results = run(case, backend=backend, checkpoint_every=every)
        assert all(map(torch.equal, results[:exact], plain[:exact]))
        assert worst_error(results, plain) < 1e-13


@fast
@pytest.mark.parametrize("form", ["features", "tokens"])
def test_two_runs_give_the_same_bits(backend, form):
    case = random_case(PAIRS["mixed"], 37, 9, torch.float32, form=form)
    first = run(case, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(run(case, backend=backend), first, strict=True))


@fast
def test_many_features(backend):
    case = random_case(batch=5, steps=3, form="features")
    wide = torch.randn(3, 5, 40, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 256, dtype=torch.float64, requires_grad=True)
    case = case._replace(x=wide, weight=weight)
    assert worst_error(run(case, backend=backend), run(case, dense_rnn)) < 1e-11


@fast
def test_arguments_may_be_views(backend):
    case = random_case(batch=4, steps=3)
    views = case._replace(
        x=case.x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        factors=[w.detach().T.contiguous().T.requires_grad_() for w in case.factors],
        h0=case.h0.detach().T.contiguous().T.requires_grad_(),
    )
    assert worst_error(run(views, backend=backend), run(case, backend=backend)) == 0.0


@pytest.mark.parametrize("bad", [0, -1])
def test_checkpoint_every_is_checked(bad):
    case = random_case()
    with pytest.raises(ValueError, match="checkpoint_every"):
        kron_rnn(case.x, case.factors, case.bias, case.h0, checkpoint_every=bad)


@fast
def test_checkpoints_may_be_further_apart_than_the_end(backend):
    case = placed(random_case(steps=5), backend)
    options = {"need_output": False, "backend": backend}

    def gradients(every):
        arguments = (case.x, case.factors, case.bias, case.h0)
        _, last = kron_rnn(*arguments, checkpoint_every=every, **options)
        return torch.autograd.grad(last, case.leaves(), case.d_last)

    assert worst_error(gradients(sys.maxsize), gradients(1)) < 1e-12


@fast
def test_factors_may_be_views_of_conjugates(backend):
    case = random_case([(2, 2)] * 4)
    adjoint = case._replace(factors=[w.detach().mH.requires_grad_() for w in case.factors])
    copies = case._replace(
        factors=[w.detach().mH.resolve_conj().requires_grad_() for w in case.factors]
    )
    assert worst_error(run(adjoint, backend=backend), run(copies, backend="reference")) < 1e-12


def test_factors_of_another_type_are_refused():
    case = random_case()
    factors = [*case.factors[:-1], case.factors[-1].to(torch.complex64)]
    with pytest.raises(ValueError, match=r"a factor has the type torch\.complex64"):
        kron_rnn(case.x, factors, case.bias, case.h0)
