"""Cells from the literature, each one time step in plain PyTorch, to be run over sequences by `sstkern.fuse`."""

from collections.abc import Mapping
from types import MappingProxyType

from sstkern.cells.library.base import LibraryCell
from sstkern.cells.library.cfc import CfCCell
from sstkern.cells.library.dropping import (
    RecurrentDropoutGRUCell,
    RecurrentDropoutLSTMCell,
    ZoneoutGRUCell,
    ZoneoutLSTMCell,
)
from sstkern.cells.library.dropping import WeightDrop as WeightDrop
from sstkern.cells.library.elementwise import IndRNNCell, MinGRUCell, MinLSTMCell
from sstkern.cells.library.gru import AUGRUCell, ChoGRUCell, LightGRUCell, MGUCell
from sstkern.cells.library.highway import RecurrentHighwayCell
from sstkern.cells.library.layer_norm import DreamerGRUCell, LayerNormGRUCell, LayerNormLSTMCell
from sstkern.cells.library.lstm import CoupledLSTMCell, MultiplicativeLSTMCell, PeepholeLSTMCell
from sstkern.cells.library.nas import NASCell
from sstkern.cells.library.slstm import SLSTMCell

LIBRARY: Mapping[str, type[LibraryCell]] = MappingProxyType(
    {
        "layer_norm_lstm": LayerNormLSTMCell,
        "peephole_lstm": PeepholeLSTMCell,
        "coupled_lstm": CoupledLSTMCell,
        "multiplicative_lstm": MultiplicativeLSTMCell,
        "zoneout_lstm": ZoneoutLSTMCell,
        "recurrent_dropout_lstm": RecurrentDropoutLSTMCell,
        "slstm": SLSTMCell,
        "min_lstm": MinLSTMCell,
        "nas": NASCell,
        "layer_norm_gru": LayerNormGRUCell,
        "cho_gru": ChoGRUCell,
        "light_gru": LightGRUCell,
        "dreamer_gru": DreamerGRUCell,
        "augru": AUGRUCell,
        "zoneout_gru": ZoneoutGRUCell,
        "recurrent_dropout_gru": RecurrentDropoutGRUCell,
        "mgu": MGUCell,
        "min_gru": MinGRUCell,
        "indrnn": IndRNNCell,
        "recurrent_highway": RecurrentHighwayCell,
        "cfc": CfCCell,
    }
)
"""Every cell by its name on the command line; each is made as Class(input_size, hidden_size)."""
