"""Text for the classifiers: vocabulary, SST-2 and TSV reading, length-bucketed batches, pretrained word vectors."""

from sstkern.text.affixes import AffixVocabulary
from sstkern.text.batches import UNLABELLED, Batch, Batches, collate
from sstkern.text.demo import demo
from sstkern.text.glove import Vectors, read_glove
from sstkern.text.split import hold_out, share_inside
from sstkern.text.sst2 import load
from sstkern.text.transformer import Subwords, read_transformer
from sstkern.text.tsv import Examples, read_tsv
from sstkern.text.vectors import load_vectors, of_transformer
from sstkern.text.vocabulary import PAD, UNK, Vocabulary

__all__ = [
    "PAD",
    "UNK",
    "UNLABELLED",
    "AffixVocabulary",
    "Batch",
    "Batches",
    "Examples",
    "Subwords",
    "Vectors",
    "Vocabulary",
    "collate",
    "demo",
    "hold_out",
    "load",
    "load_vectors",
    "of_transformer",
    "read_glove",
    "read_transformer",
    "read_tsv",
    "share_inside",
]
