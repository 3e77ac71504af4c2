"""What determines a model: the user's options and the task."""

from dataclasses import dataclass, field, fields
from typing import Dict, List, NamedTuple, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.translation import TranslationTask

from ..checks import option, require
from ..modules import CELLS
from ..modules.factors import MAX_SIZE
from ..modules.layer import UNITARY
from ..modules.readout import READS
from ..ops import ACTIVATIONS
from .baseline import BASELINES

BOOLEANS = ("1", "0", "True", "False")  # the values of fairseq's own --decoder-attention
MAX_LAYERS = 1000
SIZES = {  # the maximum of each
    "hidden_size": MAX_SIZE,
    "num_layers": MAX_LAYERS,
    "encoder_embed_dim": MAX_SIZE,
    "encoder_hidden_size": MAX_SIZE,
    "encoder_layers": MAX_LAYERS,
    "decoder_embed_dim": MAX_SIZE,
    "decoder_hidden_size": MAX_SIZE,
    "decoder_layers": MAX_LAYERS,
    "decoder_out_embed_dim": MAX_SIZE,
}
DROPOUTS = (
    "dropout",
    "encoder_dropout_in",
    "encoder_dropout_out",
    "decoder_dropout_in",
    "decoder_dropout_out",
)


@dataclass
class CellConfig(FairseqDataclass):
    """Options of the recurrent layers, shared by all architectures.

    `argument` is the name of the layers' argument where it differs from the option's.
    """

    cell: ChoiceEnum([*CELLS, *BASELINES]) = field(
        default="kru", metadata={"help": "recurrent layer; rnn, lstm and gru are torch's own"}
    )
    hidden_size: int = field(
        default=128, metadata={"help": "N, size of the state (complex numbers for kru)"}
    )
    num_layers: int = field(default=1, metadata={"help": "recurrent layers upon each other"})
    dropout: float = field(
        default=0.0, metadata={"help": "dropout between the layers and before the readout"}
    )
    kron_factors: Optional[str] = field(
        default=None,
        metadata={
            "help": "factor sizes, as '16,32' or '2x4,4x2' (default: the primes of N)",
            "argument": "factors",
        },
    )
    kron_real: bool = field(
        default=False,
        metadata={
            "help": "real factors instead of complex ones; cells with gates always have them",
            "argument": "complex=False",
        },
    )
    kron_activation: ChoiceEnum(ACTIVATIONS) = field(
        default="modrelu",
        metadata={
            "help": "nonlinearity of kru; tanh with --kron-real only",
            "argument": "activation",
        },
    )
    angle_init: Optional[float] = field(
        default=None,
        metadata={
            "help": "kru: start with factors whose eigenvalues are at most so many radians from 1,"
            " so that the state turns slowly (default: uniformly random ones)",
            "argument": "angle",
        },
    )
    chrono_init: Optional[int] = field(
        default=None,
        metadata={
            "help": "cells with gates: start with memories that last from 1 to so many steps"
            " (chrono initialisation)",
            "argument": "chrono",
        },
    )
    readout: ChoiceEnum(READS) = field(
        default="parts",
        metadata={
            "help": "kru: what is read from the complex state, its real and imaginary parts, its"
            " moduli (of what dropout leaves of the parts) or both; not in translation",
            "argument": "reads",
        },
    )
    unitary: Optional[ChoiceEnum(UNITARY)] = field(
        default=None,
        metadata={
            "help": "soft: --unitary-penalty counts the factors; none: it does not; hard: factors"
            " are exactly unitary (default: soft for kru, none for cells with gates)"
        },
    )
    kron_backend: str = field(
        default="auto",
        metadata={
            "help": "backend of the recurrence; auto takes the fastest",
            "argument": "backend",
        },
    )


@dataclass
class KRUConfig(CellConfig):
    """Options of `kru`; those of encoder and decoder have the names of fairseq's `lstm`."""

    bidirectional: bool = field(
        default=False,
        metadata={"help": "read in both directions, where a task has one answer for a sequence"},
    )
    encoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "size of source embeddings (default: --hidden-size)"}
    )
    encoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "file with pretrained source embeddings"}
    )
    encoder_freeze_embed: bool = field(
        default=False, metadata={"help": "do not train source embeddings"}
    )
    encoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "N of the encoder (default: --hidden-size)"}
    )
    encoder_layers: Optional[int] = field(
        default=None, metadata={"help": "layers of the encoder (default: --num-layers)"}
    )
    encoder_bidirectional: bool = field(
        default=False, metadata={"help": "all layers of the encoder read in both directions"}
    )
    decoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "size of target embeddings (default: --hidden-size)"}
    )
    decoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "file with pretrained target embeddings"}
    )
    decoder_freeze_embed: bool = field(
        default=False, metadata={"help": "do not train target embeddings"}
    )
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "N of the decoder (default: --hidden-size)"}
    )
    decoder_layers: Optional[int] = field(
        default=None, metadata={"help": "layers of the decoder (default: --num-layers)"}
    )
    decoder_out_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "size of output embeddings (default: as target embeddings)"}
    )
    decoder_attention: str = field(
        default="1", metadata={"help": "attend to the encoder's outputs; 1, 0, True or False"}
    )
    adaptive_softmax_cutoff: Optional[List[int]] = field(
        default=None,
        metadata={"help": "cutoffs of an adaptive softmax, for --criterion adaptive_loss"},
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share target and output embeddings"}
    )
    share_all_embeddings: bool = field(
        default=False, metadata={"help": "share source, target and output embeddings"}
    )
    encoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout of source embeddings (default: --dropout)"}
    )
    encoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout of the encoder's outputs (default: --dropout)"}
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout of target embeddings (default: --dropout)"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout of the decoder's outputs (default: --dropout)"}
    )


# What to call the layers' arguments in messages: options, or plain words where there is none.
ARGUMENTS: Dict[str, str] = {
    **{f.metadata.get("argument", f.name): option(f.name) for f in fields(CellConfig)},
    "input_size": "input size",
}


def check_ranges(cfg: CellConfig) -> None:
    """Raise a ValueError if a size or a dropout is out of range."""
    for name, most in SIZES.items():
        value = getattr(cfg, name, None)
        require(
            value is None or 1 <= value <= most,
            f"{option(name)}={value}: must be at least 1, and at most {most}",
        )
    for name in DROPOUTS:
        value = getattr(cfg, name, None)
        require(
            value is None or 0 <= value < 1,
            f"{option(name)}={value}: must be at least 0 and below 1",
        )


class ModelSpec(NamedTuple):
    """The shape of a sequence problem.

    input_size: features per step; with `tokens`, the number of symbols.
    output_size: numbers per output: classes, keys of a piano, 1 for a regression.
    tokens: inputs are integers below input_size instead of vectors.
    per_step: one output for every step instead of one for the sequence.
    silent_token: a symbol that means "nothing"; its input vector starts at 0.
    arch: the architecture for such batches.
    """

    input_size: int
    output_size: int
    tokens: bool
    per_step: bool
    silent_token: Optional[int] = None
    arch: str = "kru"


def is_translation(task) -> bool:
    """Whether source and target of a task are texts."""
    texts = [getattr(task, name, None) for name in ("source_dictionary", "target_dictionary")]
    has_both = all(text is not None for text in texts)
    return has_both and not isinstance(task, LanguageModelingTask)


def spec_of(task, arch: str) -> ModelSpec:
    """The shape of a task's problem: from `task.spec`, or from its dictionaries of symbols.

    Raises:
        ValueError: the task has neither, or needs another architecture.
    """
    name, dictionary = type(task).__name__, getattr(task, "target_dictionary", None)
    if hasattr(task, "spec"):
        spec = task.spec
    elif dictionary is not None:
        # The output may have fewer symbols than the input (--output-dictionary-size).
        source = getattr(task, "source_dictionary", None) or dictionary
        sizes = (len(source), len(dictionary))
        fitting = "kru" if isinstance(task, TranslationTask) else "kru_lm"
        spec = ModelSpec(*sizes, True, True, silent_token=source.pad(), arch=fitting)
    else:
        raise ValueError(
            f"--arch {arch}: the task {name} neither says what model it needs nor has a dictionary"
            " of symbols"
        )
    if spec.arch != arch:
        raise ValueError(f"--arch {arch}: the task {name} needs --arch {spec.arch}")
    return spec
