"""A checkpoint with other options gives an error that names the option in one line."""

import pytest
from fairseq.data import Dictionary

import kron_plugin

kron_plugin.register()

from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import KRUConfig, ModelSpec  # noqa: E402


class Sequences:
    spec = ModelSpec(5, 3, tokens=True, per_step=False)


class Texts:
    source_dictionary = target_dictionary = Dictionary()


@pytest.mark.parametrize(
    ("task", "trained", "now", "option"),
    [
        (Sequences, {"cell": "lstm"}, {}, "--cell: "),
        (Sequences, {"cell": "kru_lstm"}, {}, "--cell: "),
        (Sequences, {"cell": "lstm"}, {"cell": "gru"}, "--cell, --hidden-size, "),
        (Sequences, {"readout": "moduli"}, {}, "--cell, --hidden-size, --readout, "),
        (Sequences, {"unitary": "hard"}, {}, "--unitary: "),
        (Sequences, {"num_layers": 2}, {}, "--num-layers, "),
        (Sequences, {"bidirectional": True}, {}, "--num-layers, --bidirectional, "),
        (Sequences, {"kron_activation": "identity"}, {}, "--kron-activation: "),
        (Sequences, {"cell": "gru", "num_layers": 2}, {"cell": "gru"}, "--num-layers, "),
        (Sequences, {"kron_factors": "2,4"}, {}, "--kron-factors, "),
        (Sequences, {"kron_real": True}, {}, "--kron-factors, --kron-real "),
        (Sequences, {"hidden_size": 16}, {}, "--kron-factors, --kron-real or --hidden-size: "),
        (Texts, {"encoder_bidirectional": True}, {}, "--num-layers, "),
        (Texts, {"decoder_attention": "0"}, {}, "--decoder-attention: "),
        (Texts, {"share_all_embeddings": True}, {}, "--share-all-embeddings or "),
        (
            Texts,
            {"share_decoder_input_output_embed": True},
            {"share_all_embeddings": True},
            "--share",
        ),
        (Texts, {"adaptive_softmax_cutoff": [2]}, {}, "--adaptive-softmax-cutoff: "),
        (Texts, {}, {"adaptive_softmax_cutoff": [2]}, "--adaptive-softmax-cutoff: "),
        (Texts, {"decoder_embed_dim": 3}, {}, "--cell, --hidden-size, --readout, an --…-embed-dim"),
    ],
)
def test_the_option_that_differs_is_named(task, trained, now, option):
    there, here = (
        KRUModel.build_model(KRUConfig(**{"hidden_size": 8, **options}), task())
        for options in (trained, now)
    )
    with pytest.raises(ValueError, match=f"trained with another {option}") as error:
        here.load_state_dict(there.state_dict())
    assert "\n" not in str(error.value)
    here.load_state_dict(here.state_dict())
