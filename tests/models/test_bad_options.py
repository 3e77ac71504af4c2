"""Each option of a model gives a model, or an error in words that a user can type."""

import re
from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary
from hypothesis import example, given
from hypothesis import strategies as st

import kron_plugin

kron_plugin.register()

from kron_plugin import registration  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import (  # noqa: E402
    ARGUMENTS,
    BASELINES,
    KRUConfig,
    ModelSpec,
)
from kron_plugin.modules import CELLS  # noqa: E402
from kron_plugin.ops.backends import BackendError  # noqa: E402

from ..fuzz import ends_well, fuzzed  # noqa: E402

SIZES = st.integers(-1, 9) | st.sampled_from([2**29, 2**31 - 1])
SPEC = ModelSpec(5, 3, tokens=False, per_step=False)
# The name of a layer's argument, but not at the end of an option.
OF_PYTHON = re.compile(rf"(?<![-\w])({'|'.join(ARGUMENTS)}|hidden_size)\b(?==|_| is)")


def build(options):
    return KRUModel.build_model(KRUConfig(**options), SimpleNamespace(spec=SPEC))


@fuzzed
@given(
    st.fixed_dictionaries(
        {"hidden_size": SIZES},
        optional={
            "cell": st.sampled_from([*CELLS, *BASELINES]),
            "kron_factors": st.text("0123456789x, -", max_size=6),
            "kron_real": st.booleans(),
            "kron_activation": st.sampled_from(["modrelu", "tanh", "identity"]),
            "unitary": st.sampled_from(["none", "soft", "hard"]),
            "kron_backend": st.sampled_from(["auto", "gpu", "reference"]),
            "angle_init": st.floats(),
            "chrono_init": st.integers(-1, 5),
            "readout": st.sampled_from(["parts", "moduli", "both"]),
            "num_layers": st.integers(-1, 3),
            "dropout": st.floats(),
        },
    )
)
@example({"kron_activation": "tanh"})
@example({"hidden_size": 4, "kron_factors": "2,3"})
@example({"hidden_size": 4, "kron_factors": "a"})
@example({"hidden_size": 8, "kron_factors": "2x4,4x2", "angle_init": 1.0})
@example({"hidden_size": 8, "kron_factors": "2x4,4x2", "unitary": "hard"})
@example({"hidden_size": 2**31 - 1})
@example({"hidden_size": 2**29})
@example({"hidden_size": 4, "kron_backend": "gpu"})
def test_what_is_wrong_is_said_of_options(options):
    told = []

    def build_or_tell(options):
        try:
            return build(options)
        except ValueError as error:
            told.append(str(error))
            raise

    ends_well(build_or_tell, options, says="--")
    assert not OF_PYTHON.search(" ".join(told)), told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kron_activation": "tanh"}, "--kron-activation='tanh' needs --kron-real"),
        ({"kron_factors": "2,3"}, "--kron-factors='2,3' multiply to 6, but --hidden-size is 128;"),
        ({"kron_backend": "gpu"}, "--kron-backend='gpu': choose one of auto, "),
        (
            {"kron_factors": "2x64,64x2", "unitary": "hard"},
            "--kron-factors='2x64,64x2': --unitary='hard' needs square ones",
        ),
    ],
)
def test_the_words_are_whole(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(options)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_size_of_one_side_is_called_by_its_option(side):
    dictionary = Dictionary()
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    cfg = KRUConfig(hidden_size=6, kron_factors="2,3", **{f"{side}_hidden_size": 4})
    with pytest.raises(ValueError, match=f"but --{side}-hidden-size is 4; '2,2' would fit"):
        KRUModel.build_model(cfg, task)


def test_a_backend_that_cannot_serve_is_called_by_its_option(capsys):
    """The error comes at the first step, because only then the device is known."""
    error = BackendError("backend='cuda' cannot serve: there is no GPU")
    try:
        build({"hidden_size": 4, "kron_backend": "meta"})
    except ValueError as raised:
        error = error.with_traceback(raised.__traceback__)
    registration._say_plainly(BackendError, error, error.__traceback__)
    told = capsys.readouterr().err
    assert told.endswith(": --kron-backend='cuda' cannot serve: there is no GPU\n")
