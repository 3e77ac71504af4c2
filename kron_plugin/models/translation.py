"""Translation with `--arch kru`: an encoder and a decoder built from its options."""

from pathlib import Path
from typing import List, Optional

from fairseq import utils
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.lstm import Embedding
from torch import nn

from ..checks import require
from .cells import make_cell
from .decoder import KRUTranslationDecoder
from .encoder import KRUEncoder
from .mismatch import ExplainsMismatch
from .options import BOOLEANS, KRUConfig, check_ranges


class KRUTranslationModel(ExplainsMismatch, FairseqEncoderDecoderModel):
    """An encoder and a decoder, for fairseq's `translation` and similar tasks."""

    @classmethod
    def make(cls, cfg: KRUConfig, task) -> "KRUTranslationModel":
        """Encoder and decoder for the dictionaries of a task.

        Raises:
            ValueError: options do not fit together.
        """
        _check_options(cfg, task)
        source_embed = _embedding(task.source_dictionary, cfg, "encoder")
        target_embed = source_embed
        if not cfg.share_all_embeddings:
            target_embed = _embedding(task.target_dictionary, cfg, "decoder")
        source_embed.weight.requires_grad &= not cfg.encoder_freeze_embed
        target_embed.weight.requires_grad &= not cfg.decoder_freeze_embed
        encoder = _build_encoder(cfg, task.source_dictionary, source_embed)
        return cls(encoder, _build_decoder(cfg, task.target_dictionary, target_embed, encoder))


def _check_options(cfg: KRUConfig, task) -> None:
    require(not cfg.bidirectional, "--bidirectional: in translation, --encoder-bidirectional")
    require(
        cfg.readout == "parts",
        f"--readout={cfg.readout}: is not for translation, which has a readout of its own",
    )
    require(
        cfg.decoder_attention in BOOLEANS,
        f"--decoder-attention={cfg.decoder_attention}: must be one of {', '.join(BOOLEANS)}",
    )
    check_ranges(cfg)
    _check_cutoff(cfg.adaptive_softmax_cutoff, len(task.target_dictionary))
    encoder_dim = _or(cfg.encoder_embed_dim, cfg.hidden_size)
    decoder_dim = _or(cfg.decoder_embed_dim, cfg.hidden_size)
    out_dim = _or(cfg.decoder_out_embed_dim, decoder_dim)
    layers = [_or(n, cfg.num_layers) for n in (cfg.encoder_layers, cfg.decoder_layers)]
    require(
        layers[0] == layers[1],
        f"--encoder-layers={layers[0]}: must equal --decoder-layers={layers[1]}, as every layer of"
        " the decoder starts from one of the encoder",
    )
    if cfg.share_all_embeddings:
        option = "--share-all-embeddings"
        require(
            task.source_dictionary == task.target_dictionary,
            f"{option}: needs a joint dictionary (fairseq-preprocess --joined-dictionary)",
        )
        require(
            encoder_dim == decoder_dim,
            f"{option}: --encoder-embed-dim={encoder_dim} must equal --decoder-embed-dim="
            f"{decoder_dim}",
        )
        require(
            cfg.decoder_embed_path in (None, cfg.encoder_embed_path),
            f"{option}: --decoder-embed-path must be --encoder-embed-path",
        )
    if cfg.share_all_embeddings or cfg.share_decoder_input_output_embed:
        require(
            decoder_dim == out_dim,
            f"shared embeddings: --decoder-embed-dim={decoder_dim} must equal"
            f" --decoder-out-embed-dim={out_dim}",
        )
        require(
            cfg.adaptive_softmax_cutoff is None,
            "--adaptive-softmax-cutoff: has output embeddings of its own and cannot share them",
        )


def _check_cutoff(cutoff: Optional[List[int]], symbols: int) -> None:
    if cutoff is None:
        return
    ascending = all(a < b for a, b in zip([0, *cutoff], [*cutoff, symbols + 1], strict=True))
    require(
        bool(cutoff) and ascending,
        f"--adaptive-softmax-cutoff={list(cutoff)}: must ascend from 1 at least to {symbols}, the"
        " symbols of the target, at most",
    )


def _build_encoder(cfg: KRUConfig, dictionary, embed_tokens: nn.Embedding) -> KRUEncoder:
    dropout_out = _or(cfg.encoder_dropout_out, cfg.dropout)
    cell = make_cell(
        cfg,
        embed_tokens.embedding_dim,
        _size(cfg, "encoder"),
        num_layers=_or(cfg.encoder_layers, cfg.num_layers),
        dropout=dropout_out,
        bidirectional=cfg.encoder_bidirectional,
    )
    dropout_in = _or(cfg.encoder_dropout_in, cfg.dropout)
    return KRUEncoder(dictionary, embed_tokens, cell, dropout_in, dropout_out)


def _build_decoder(
    cfg: KRUConfig, dictionary, embed_tokens: nn.Embedding, encoder: KRUEncoder
) -> KRUTranslationDecoder:
    dropout_out = _or(cfg.decoder_dropout_out, cfg.dropout)
    cell = make_cell(
        cfg,
        embed_tokens.embedding_dim,
        _size(cfg, "decoder"),
        num_layers=_or(cfg.decoder_layers, cfg.num_layers),
        dropout=dropout_out,
        bidirectional=False,
    )
    return KRUTranslationDecoder(
        dictionary,
        embed_tokens,
        cell,
        source_size=encoder.cell.output_size,
        out_dim=_or(cfg.decoder_out_embed_dim, embed_tokens.embedding_dim),
        has_attention=cfg.decoder_attention in ("1", "True"),
        share_embed=cfg.share_all_embeddings or cfg.share_decoder_input_output_embed,
        cutoff=cfg.adaptive_softmax_cutoff,
        dropout_in=_or(cfg.decoder_dropout_in, cfg.dropout),
        dropout_out=dropout_out,
    )


def _size(cfg: KRUConfig, side: str) -> str:
    """The option that gives the hidden size of "encoder" or "decoder"."""
    own = f"{side}_hidden_size"
    return "hidden_size" if getattr(cfg, own) is None else own


def _embedding(dictionary, cfg: KRUConfig, side: str) -> nn.Embedding:
    """Embeddings of "encoder" or "decoder": random, or from a file in GloVe's format."""
    size = _or(getattr(cfg, f"{side}_embed_dim"), cfg.hidden_size)
    path = getattr(cfg, f"{side}_embed_path")
    option = f"--{side}-embed-path {path}"
    embed_tokens = Embedding(len(dictionary), size, dictionary.pad())
    if path is None:
        return embed_tokens
    require(Path(path).is_file(), f"{option}: no such file")
    if embed_tokens.weight.is_meta:  # a model without memory
        return embed_tokens
    pretrained = utils.parse_embedding(path)
    have = len(next(iter(pretrained.values()), ()))
    require(have == size, f"{option}: holds embeddings of {have} numbers; {size} are asked for")
    utils.print_embed_overlap(pretrained, dictionary)
    return utils.load_embedding(pretrained, dictionary, embed_tokens)


def _or(value, default):
    return default if value is None else value
