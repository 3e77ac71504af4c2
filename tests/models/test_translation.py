"""Encoder and decoder, without fairseq's commands."""

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from fairseq.data import Dictionary
from fairseq.data.language_pair_dataset import collate
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf

import kron_plugin

kron_plugin.register()

from kron_plugin.models.cells import penalty_and_deviation  # noqa: E402
from kron_plugin.models.kru import KRUModel  # noqa: E402
from kron_plugin.models.options import CELLS, KRUConfig  # noqa: E402


def dictionary(symbols="abcdef"):
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


class Task:
    def __init__(self):
        self.source_dictionary = self.target_dictionary = dictionary()


def build(task=None, **options):
    options = {"hidden_size": 4, **options}
    return KRUModel.build_model(KRUConfig(**options), task or Task()).double().eval()


def sources(left_pad=True):
    """Three texts of 5, 3 and 4 symbols as fairseq pads them, and their lengths."""
    lengths = torch.tensor([5, 3, 4])
    tokens = torch.full((3, 5), Dictionary().pad())
    for row, n in zip(tokens, lengths, strict=True):
        row[5 - n :] = torch.arange(4, 4 + n)
        if not left_pad:
            row.copy_(row.roll(-(5 - int(n))))
    return tokens, lengths


CONFIGS = [
    *({"cell": cell} for cell in CELLS),
    {"cell": "kru", "encoder_bidirectional": True, "num_layers": 2},
    {"cell": "kru_lstm", "encoder_bidirectional": True, "decoder_hidden_size": 6},
    {"decoder_attention": "0", "decoder_embed_dim": 3},
    {"share_all_embeddings": True, "unitary": "hard"},
]


@pytest.mark.parametrize("options", CONFIGS)
def test_symbol_by_symbol_equals_all_at_once(options):
    model = build(**options)
    source, lengths = sources()
    target = torch.randint(4, 10, (3, 6))
    whole, extra = model(source, lengths, target)
    assert whole.shape == (3, 6, 10)
    encoder_out, state = model.encoder(source, lengths), {}
    for t in range(6):
        step, seen = model.decoder(target[:, : t + 1], encoder_out, incremental_state=state)
        torch.testing.assert_close(step[:, 0], whole[:, t])
        if extra["attn"] is not None:
            torch.testing.assert_close(seen["attn"][0][:, 0], extra["attn"][0][:, t])
        order = torch.tensor([2, 0, 0])  # a beam search reorders and drops hypotheses so
        target, whole = target[order], whole[order]
        extra = {"attn": extra["attn"] and [extra["attn"][0][order]]}
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        model.decoder.reorder_incremental_state(state, order)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_beam_search_scores_as_the_whole_text_does(cell):
    task = Task()
    model = build(task, cell=cell, num_layers=2)
    source, lengths = sources()
    eos = task.target_dictionary.eos()
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=3, max_len_b=6)
    net_input = {"src_tokens": source, "src_lengths": lengths}
    for b, hypotheses in enumerate(generator.generate([model], {"net_input": net_input})):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            before = torch.cat([torch.tensor([eos]), tokens[:-1]])[None]
            output = model(source[b : b + 1], lengths[b : b + 1], before)
            log_probs = model.get_normalized_probs(output, log_probs=True)[0]
            expected = log_probs.gather(1, tokens[:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"], expected, check_dtype=False)


@pytest.mark.parametrize("left_pad", [True, False])
@pytest.mark.parametrize("cell", ["kru", "lstm"])
def test_padding_does_not_reach_the_scores(cell, left_pad):
    model = build(cell=cell, encoder_bidirectional=True, num_layers=2)
    source, lengths = sources(left_pad)
    target = torch.randint(4, 10, (3, 6))
    scores, extra = model(source, lengths, target)
    (weights,) = extra["attn"]
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 6).double())
    for b, n in enumerate(lengths.tolist()):
        own = slice(5 - n, 5) if left_pad else slice(n)
        alone, seen = model(source[b : b + 1, own], lengths[b : b + 1], target[b : b + 1])
        torch.testing.assert_close(scores[b : b + 1], alone)
        # A symbol and its weight have the same place in the source; alignments depend on it.
        torch.testing.assert_close(weights[b : b + 1, :, own], seen["attn"][0])
        assert weights[b].count_nonzero() == 6 * n


@pytest.mark.parametrize("left_pad", [True, False])
def test_guided_alignment_has_a_finite_loss(left_pad):
    """fairseq's criterion takes the logarithm of the weights at the data's places."""
    pair = {"alignment": torch.tensor([[0, 0], [1, 1]])}
    samples = [
        {"id": i, "source": torch.tensor(text), "target": torch.tensor(text), **pair}
        for i, text in enumerate([[4, 5, 6, 7, 8, 2], [4, 5, 2]])
    ]
    batch = collate(samples, Dictionary().pad(), 2, left_pad_source=left_pad, left_pad_target=False)
    criterion = LabelSmoothedCrossEntropyCriterionWithAlignment(Task(), False, 0.1, 0.05)
    loss, _, _ = criterion(build().train(), batch)
    assert loss.isfinite()


@pytest.mark.parametrize("cell", ["kru", "kru_lstm"])
def test_dropout_can_be_retained_when_generating(cell):
    """fairseq's --retain-dropout shows how sure a model is. It works in all places with dropout."""
    for only in ({"dropout": 0.5}, {"encoder_dropout_out": 0.5, "num_layers": 2}):
        for retain in (True, False):
            torch.manual_seed(0)
            model = build(cell=cell, **only)
            options = {"retain_dropout": retain, "retain_dropout_modules": None}
            model.prepare_for_inference_(OmegaConf.create({"generation": options}))
            states = [model.encoder(*sources()).state[0] for _ in range(2)]
            assert torch.equal(*states) != retain


@pytest.mark.parametrize("cell", ["kru", "lstm"])
def test_every_layer_starts_from_its_own_of_the_encoder(cell):
    encoder = build(cell=cell, encoder_bidirectional=True, num_layers=2).encoder
    source, lengths = sources(left_pad=False)
    _, state = encoder.cell.run(encoder.embed_tokens(source.t()), lengths=lengths)
    for joined, part in zip(encoder(source, lengths).state, state, strict=True):
        for layer in range(2):
            expected = torch.cat([part[2 * layer], part[2 * layer + 1]], -1)
            assert torch.equal(joined[layer], expected)


def test_embeddings_are_shared_as_asked():
    apart, decoder, all_ = (
        build(),
        build(share_decoder_input_output_embed=True),
        build(share_all_embeddings=True),
    )
    count = [sum(p.numel() for p in m.parameters()) for m in (apart, decoder, all_)]
    assert count[0] - count[1] == 10 * 4 + 10  # the readout, and its bias
    assert count[1] - count[2] == 10 * 4
    assert all_.decoder.readout.weight is all_.encoder.embed_tokens.weight
    frozen = build(share_all_embeddings=True, encoder_freeze_embed=True)
    assert not frozen.decoder.readout.weight.requires_grad


def test_pretrained_embeddings_are_read(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("2 4\nb 1 2 3 4\nunheard 5 6 7 8\n")
    model = build(encoder_embed_path=str(path), encoder_freeze_embed=True)
    weight = model.encoder.embed_tokens.weight
    assert weight[Task().source_dictionary.index("b")].tolist() == [1, 2, 3, 4]
    assert not weight.requires_grad
    assert model.decoder.embed_tokens.weight.requires_grad


def test_an_adaptive_softmax_scores_all_symbols():
    model = build(adaptive_softmax_cutoff=[6])
    output = model(*sources(), torch.randint(4, 10, (3, 6)))
    probs = model.get_normalized_probs(output, log_probs=False)
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, 6).double())


def test_every_parameter_trains_and_all_factors_are_penalised():
    model = build(encoder_bidirectional=True, num_layers=2)
    with torch.no_grad():
        model.decoder.cell.factors[0].mul_(2)
        model.encoder.cell.factors[-1].mul_(2)
    penalty, _ = penalty_and_deviation(model)
    assert penalty.item() == pytest.approx(2 * 18)
    scores, _ = model(*sources(), torch.randint(4, 10, (3, 6)))
    (scores.square().sum() + penalty).backward()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not idle


class TwoDictionaries(Task):
    def __init__(self):
        self.source_dictionary, self.target_dictionary = dictionary(), dictionary("xyz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_layers": 2}, "--encoder-layers=2: must equal --decoder-layers=1"),
        ({"share_all_embeddings": True}, "--share-all-embeddings: needs a joint dictionary"),
        (
            {"share_decoder_input_output_embed": True, "decoder_out_embed_dim": 3},
            "--decoder-embed-dim=4 must equal --decoder-out-embed-dim=3",
        ),
        (
            {"share_decoder_input_output_embed": True, "adaptive_softmax_cutoff": [3]},
            "--adaptive-softmax-cutoff",
        ),
        ({"bidirectional": True}, "--bidirectional: in translation, --encoder-bidirectional"),
        ({"readout": "moduli"}, "--readout=moduli: is not for translation"),
        ({"decoder_attention": "maybe"}, "--decoder-attention=maybe: must be one of 1, 0, True"),
        ({"encoder_hidden_size": 0}, "--encoder-hidden-size=0: must be at least 1"),
        ({"encoder_layers": 0, "decoder_layers": 0}, "--encoder-layers=0: must be at least 1"),
        ({"decoder_embed_dim": -1}, "--decoder-embed-dim=-1: must be at least 1"),
        ({"decoder_out_embed_dim": 0}, "--decoder-out-embed-dim=0: must be at least 1"),
        ({"adaptive_softmax_cutoff": []}, r"cutoff=\[\]: must ascend from 1 at least to 7"),
        ({"adaptive_softmax_cutoff": [0]}, r"cutoff=\[0\]: must ascend"),
        ({"adaptive_softmax_cutoff": [5, 3]}, r"cutoff=\[5, 3\]: must ascend"),
        ({"adaptive_softmax_cutoff": [8]}, r"cutoff=\[8\]: must ascend"),
        ({"encoder_layers": 2000}, "--encoder-layers=2000: must be at least 1, and at most 1000"),
        ({"dropout": 1.0}, r"--dropout=1.0: must be at least 0 and below 1"),
        ({"encoder_dropout_in": -0.5}, r"--encoder-dropout-in=-0.5: must be at least 0"),
        ({"decoder_dropout_in": 1.5}, r"--decoder-dropout-in=1.5: must be at least 0"),
        ({"decoder_dropout_out": 1.0}, r"--decoder-dropout-out=1.0: must be at least 0"),
        (
            {"dropout": -0.5, "encoder_dropout_out": 0.1, "decoder_dropout_out": 0.1},
            r"--dropout=-0.5: must be at least 0",
        ),
        ({"encoder_embed_path": "absent.txt"}, r"--encoder-embed-path absent\.txt: no such file"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(TwoDictionaries(), **options)


def test_a_config_file_may_write_booleans_and_numbers():
    config = OmegaConf.structured(KRUConfig(hidden_size=4))
    for written, attends in ((0, False), (False, False), (1, True), (True, True)):
        config.decoder_attention = written
        assert (KRUModel.build_model(config, Task()).decoder.attention is not None) == attends


def test_embeddings_of_another_size_are_refused(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("1 2\nb 1 2\n")
    with pytest.raises(
        ValueError,
        match=r"--encoder-embed-path .*vectors.txt: holds embeddings of 2 numbers; 4 are",
    ):
        build(encoder_embed_path=str(path))
