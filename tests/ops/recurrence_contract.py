"""Tests for every backend of every recurrence; each backend's test file subclasses them."""

import io
import math
import sys

import pytest
import torch

from kron_plugin.modules import CELLS

from .recurrence_cases import (
    KINDS,
    ONE_OF_EACH_CELL,
    SHAPES,
    cast,
    equal,
    forward,
    placed,
    random_case,
    run,
    worst_error,
)

kinds = pytest.mark.parametrize("kind", KINDS)
cells = pytest.mark.parametrize("kind", ONE_OF_EACH_CELL)
forms = pytest.mark.parametrize("form", ["dense", "features", "tokens"])

# Varied together: (batch, steps, form, with_lengths, options). Batch sizes are at and between the
# widths of vectors; there are one, two and many steps, and each way of keeping states.
SETTINGS = [
    (1, 2, "dense", False, {}),
    (3, 33, "features", True, {"checkpoint_every": 8}),
    (16, 1, "tokens", False, {"need_output": False}),
    (20, 2, "dense", True, {"need_output": False, "checkpoint_every": 2}),
    (33, 5, "tokens", True, {}),
    (33, 3, "features", False, {"need_output": False}),
    (0, 3, "features", True, {"checkpoint_every": 2}),
]


class RecurrenceContract:
    """The tests; a subclass names the backend, and the shapes and kinds."""

    backend: str
    shapes = SHAPES
    most = 1000  # sequences in a batch
    is_exact = True  # whether checkpoints change no bit of a gradient

    def run(self, case, **options):
        return run(case, self.backend, **options)

    @kinds
    @pytest.mark.parametrize("setting", range(len(SETTINGS)))
    def test_equals_dense_matrices(self, kind, setting):
        batch, steps, form, with_lengths, options = SETTINGS[setting]
        # Over the settings, every kind runs with every shape.
        names = list(self.shapes)
        for name in names[(setting + list(KINDS).index(kind)) % 2 :: 2]:
            shapes = self.shapes[name]
            few = min(steps, 9) if max(max(pair) for pair in shapes) > 100 else steps
            sizes = (min(batch, self.most), min(few, 3 * self.most))
            case = random_case(KINDS[kind], shapes, *sizes, form, with_lengths)
            results = self.run(case, **options)
            expected = run(case, "dense", need_output=options.get("need_output", True))
            bound = 1e-11 if KINDS[kind].cell == "rnn" else 1e-12
            assert worst_error(results, expected) < bound, name

    @forms
    @kinds
    def test_single_precision_is_as_exact_as_the_reference(self, kind, form):
        exact = random_case(KINDS[kind], [(2, 2)] * 4, min(21, self.most), 5, form, True)
        single = cast(exact, torch.float32)
        expected = run(exact, "dense")
        usual = worst_error(run(single, "reference"), expected)
        more = 1e-5 if KINDS[kind].cell == "rnn" or self.backend == "cuda" else 1e-6
        assert worst_error(self.run(single), expected) < 3 * usual + more

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @cells
    def test_half_precision_is_storage_only(self, kind, dtype):
        """Results equal float32 of the same numbers, but for rounding when they are stored."""
        half = random_case(KINDS[kind], [(2, 2)] * 4, 3, 5, "features", True, dtype)
        single = cast(half, torch.float32)
        expected = self.run(single) if self.is_exact else run(single, "reference")
        for options in ({}, {"checkpoint_every": 2}):
            results = self.run(half, **options)
            assert all(have.dtype == dtype for have in results[: len(half.state) + 2])
            if self.is_exact:  # and computed as in float32
                for have, want in zip(results, expected, strict=True):
                    torch.testing.assert_close(have, want.to(have.dtype))
            else:
                assert worst_error(results, expected) < (4e-3 if dtype == torch.float16 else 3e-2)

    @kinds
    @pytest.mark.parametrize("shapes", [[(2, 2)] * 3, [(2, 4), (4, 2)]])
    def test_gradcheck(self, kind, shapes):
        case = random_case(KINDS[kind], shapes, 3, 3, "features", True)
        case = placed(case, self.backend)
        counts = [len(product) for product in case.factors]

        def function(x, bias, weight, *rest):
            state, flat = rest[: len(case.state)], torch.utils._pytree.tree_leaves(rest)
            flat = flat[len(case.state) :]
            factors = [[flat.pop(0) for _ in range(count)] for count in counts]
            changed = case._replace(x=x, bias=bias, weight=weight, state=state, factors=factors)
            outputs, last = forward(changed, self.backend)
            return outputs, *last

        factors = [w for product in case.factors for w in product]
        leaves = (case.x, case.bias, case.weight, *case.state, *factors)
        assert torch.autograd.gradcheck(function, leaves, fast_mode=not self.is_exact)

    @pytest.mark.parametrize("shapes", [[(2, 2)] * 4, [(3, 2), (2, 3), (2, 2)]])
    @kinds
    def test_checkpoints_change_nothing(self, kind, shapes):
        case = random_case(KINDS[kind], shapes, min(37, self.most), 7, "features", True)
        plain = self.run(case)
        for every in (2, 3, 7, sys.maxsize):
            results = self.run(case, checkpoint_every=every)
            assert equal(results[: len(case.state) + 1], plain[: len(case.state) + 1])
            assert equal(results, plain) if self.is_exact else worst_error(results, plain) < 1e-13

    @forms
    @cells
    def test_two_runs_give_the_same_bits(self, kind, form):
        shapes, batch = [(2, 2), (3, 3), (2, 2)], min(37, self.most)
        case = random_case(KINDS[kind], shapes, batch, 4, form, dtype=torch.float32)
        assert equal(self.run(case), self.run(case))

    @cells
    def test_arguments_may_be_views(self, kind):
        case = random_case(KINDS[kind], [(2, 2)] * 4, 4, 3)
        views = case._replace(
            x=case.x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
            factors=[[_view(w) for w in product] for product in case.factors],
            state=tuple(map(_view, case.state)),
        )
        bound = 1e-14 if self.backend == "reference" else 0.0
        assert worst_error(self.run(views), self.run(case)) <= bound

    def test_factors_may_be_views_of_conjugates(self):
        case = random_case(shapes=[(2, 2)] * 4)
        views = [w.detach().mH for w in case.factors[0]]
        adjoint = case._replace(factors=[[w.requires_grad_() for w in views]])
        copies = case._replace(
            factors=[[w.resolve_conj().detach().requires_grad_() for w in views]]
        )
        assert worst_error(self.run(adjoint), run(copies, "reference")) < 1e-12

    @cells
    def test_last_states_are_tensors_of_their_own(self, kind):
        case = placed(random_case(KINDS[kind], [(2, 2)] * 4), self.backend)
        _, state = forward(case, self.backend)
        others = [part.detach().clone() for part in state]
        state[0].detach_().zero_()
        assert equal(state[1:], others[1:])

    @cells
    def test_many_features(self, kind):
        case = random_case(KINDS[kind], [(2, 2)] * 4, 5, 3, "features", inputs=40)
        assert worst_error(self.run(case), run(case, "dense")) < 1e-11

    @forms
    @cells
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_stands_beyond_a_length_is_not_read(self, kind, form, bad):
        case = random_case(KINDS[kind], [(2, 2)] * 4, 3, 4, form)
        case = case._replace(lengths=torch.tensor([2, 4, 3]))
        x = case.x.detach().clone()
        x[torch.arange(4).unsqueeze(1) >= case.lengths] = 1000 if form == "tokens" else bad
        spoilt = case._replace(x=x.requires_grad_(form != "tokens"))
        assert equal(self.run(spoilt), self.run(case))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("kind", [name for name in KINDS if name != "real tanh"])
    def test_what_is_not_finite_stays_so(self, kind, bad):
        if kind not in ("kru", "real modrelu", "complex identity", "real identity"):
            bad = math.nan  # tanh bounds an infinity
        case = placed(random_case(KINDS[kind], [(2, 2)] * 4, steps=6), self.backend)
        with torch.no_grad():
            case.x[2, 1, 5] = bad
            outputs, last = forward(case, self.backend)
        finite = outputs.isfinite().all(2)
        assert finite[:2].all()
        assert finite[:, [0, 2]].all()
        assert not finite[2:, 1].any()
        assert not last[0][1].isfinite().all()

    @pytest.mark.parametrize("off", [-100.0, -math.inf])
    def test_dead_units_have_no_gradient_and_zero_states_no_direction(self, off):
        case = random_case(shapes=[(2, 2)] * 4, steps=4)
        with torch.no_grad():
            case.bias[:8] = off  # relu is off
            case.bias[8:] = 0.5
            case.state[0].zero_()
            case.x[0].zero_()  # so z = 0 at the first step, and stays 0 until there is input
        self.check_finite(case)

    @pytest.mark.parametrize("bias", [-5.0, 0.0])
    def test_gradients_are_finite_where_modrelu_has_its_edge(self, bias):
        """|z| = −b at the first step, and z = 0 at the second."""
        case = random_case(shapes=[(2, 2)] * 4, batch=2, steps=2)
        with torch.no_grad():
            case.state[0].zero_()
            case.bias.fill_(bias)
            case.x[0] = torch.tensor([3.0] * 16 + [4.0] * 16) if bias else 0.0
            case.x[1] = 0.0
        self.check_finite(case)

    def test_gates_may_be_shut_for_good(self):
        """A bias of minus infinity shuts them."""
        case = random_case(KINDS["lstm"], [(2, 2)] * 4, steps=4)
        with torch.no_grad():
            case.bias[::3] = -torch.inf
        self.check_finite(case)

    def check_finite(self, case):
        results, expected = self.run(case), run(case, "reference")
        assert worst_error(results, expected) < 1e-11
        assert all(torch.view_as_real(r + 0j).isfinite().all() for r in results)

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
    def test_factors_far_from_unitary(self, first, tolerance, is_complex):
        kind = KINDS["kru" if is_complex else "real modrelu"]
        count = 7 if self.is_exact else 4
        case = random_case(kind, [(2, 2)] * count, min(5, self.most), 3)
        element = case.factors[0][0].dtype
        factor = torch.tensor(first, dtype=torch.float64).to(element).requires_grad_()
        for place in (0, count // 2, count - 1):
            factors = list(case.factors[0])
            factors[place] = factor
            changed = case._replace(factors=[factors])
            assert worst_error(self.run(changed), run(changed, "dense")) < tolerance


def _view(tensor):
    return tensor.detach().T.contiguous().T.requires_grad_()


class FusedContract(RecurrenceContract):
    """More tests for backends with kernels: torch knows their operators."""

    @cells
    def test_compiles_without_breaking_the_graph(self, kind):
        case = random_case(KINDS[kind], [(2, 2)] * 4, form="features", with_lengths=True)
        case = placed(case, self.backend)
        leaves = case.leaves()

        def model(*leaves):
            outputs, state = forward(case, self.backend)
            return outputs.sum() + sum(part.square().sum() for part in state)

        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        ours = torch.autograd.grad(compiled(*leaves), leaves)
        assert worst_error(ours, torch.autograd.grad(model(*leaves), leaves)) < 1e-12

    @cells
    def test_double_backward_names_the_backend_that_has_it(self, kind):
        case = placed(random_case(KINDS[kind], [(2, 2)] * 4), self.backend)

        def twice(backend):
            _, state = forward(case, backend)
            (gradient,) = torch.autograd.grad(state[0].square().sum(), case.x, create_graph=True)
            gradient.square().sum().backward()

        with pytest.raises(RuntimeError, match="backend='reference'"):
            twice(self.backend)
        twice("reference")

    @pytest.mark.parametrize("layer", CELLS.values())
    @pytest.mark.parametrize("every", [1, 3])
    @pytest.mark.filterwarnings("ignore")
    def test_what_was_exported_without_gradients_has_them(self, layer, every):
        """The graph keeps no states, so they are computed again."""
        call = {"need_output": every == 1}
        made = layer(3, 8, backend=self.backend, checkpoint_every=every).double()
        x = torch.randn(5, 4, 3, dtype=torch.float64)
        made, x = made.to(placed(x, self.backend).device), placed(x, self.backend)
        with torch.no_grad():
            exported = torch.export.export(made, (x,), call)
        file = io.BytesIO()
        torch.export.save(exported, file)
        file.seek(0)
        module = torch.export.load(file).module()

        def gradients(module):
            output, state = module(x, **call)
            last = state if isinstance(state, torch.Tensor) else sum(state)
            total = last.square().sum() + output.square().sum()
            names, parameters = zip(*module.named_parameters(), strict=True)
            return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))

        expected, have = gradients(made), gradients(module)
        assert have.keys() == expected.keys()
        assert worst_error([have[name] for name in expected], list(expected.values())) < 1e-14
