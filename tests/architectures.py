"""Small real models with recurrent layers of torch.nn, as their papers have them: what `convert` has to get right."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LENGTHS = torch.tensor([6, 2, 5])


class Seq2Seq(nn.Module):
    """Bahdanau, Cho, Bengio 2015: a bidirectional GRU encodes, a GRU cell decodes, with additive attention. Targets are forced."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(11, 5), nn.Embedding(9, 5)
        self.encoder = nn.GRU(5, 6, bidirectional=True)
        self.first = nn.Linear(6, 6)
        self.decoder = nn.GRUCell(5 + 12, 6)
        self.query, self.key, self.energy = nn.Linear(6, 7, bias=False), nn.Linear(12, 7), nn.Linear(7, 1)
        self.vote = nn.Linear(6 + 12 + 5, 9)

    def forward(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        source, target = torch.randint(11, (6, 3), generator=generator), torch.randint(9, (4, 3), generator=generator)
        packed = pack_padded_sequence(self.source(source), LENGTHS, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.encoder(packed)[0])
        valid = torch.arange(6)[:, None] < LENGTHS
        h, word, loss = torch.tanh(self.first(states[0, :, 6:])), self.target(torch.zeros(3, dtype=torch.int64)), 0.0
        for step in range(4):
            energies = self.energy(torch.tanh(self.query(h) + self.key(states)))[..., 0].masked_fill(~valid, -torch.inf)
            context = (energies.softmax(0)[..., None] * states).sum(0)
            h = self.decoder(torch.cat([word, context], 1), h)
            loss = loss + cross_entropy(self.vote(torch.cat([h, context, word], 1)), target[step])
            word = self.target(target[step])
        return loss


class Tagger(nn.Module):
    """Huang, Xu, Yu 2015: a BiLSTM's scores of the tags, and a conditional random field's of their transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.encoder, self.scores = nn.Embedding(13, 5), nn.LSTM(5, 4, batch_first=True, bidirectional=True), nn.Linear(8, 3)
        self.transitions = nn.Parameter(torch.randn(3, 3))

    def forward(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        words, tags = torch.randint(13, (3, 6), generator=generator), torch.randint(3, (3, 6), generator=generator)
        packed = pack_padded_sequence(self.words(words), LENGTHS, batch_first=True, enforce_sorted=False)
        scores = self.scores(pad_packed_sequence(self.encoder(packed)[0], batch_first=True)[0])
        loss = 0.0
        for row, length in enumerate(LENGTHS.tolist()):
            emitted, path = scores[row, :length], tags[row, :length]
            total = emitted[0]
            for step in range(1, length):
                total = torch.logsumexp(total[:, None] + self.transitions, 0) + emitted[step]
            right = emitted[torch.arange(length), path].sum() + self.transitions[path[:-1], path[1:]].sum()
            loss = loss + torch.logsumexp(total, 0) - right
        return loss


class LanguageModel(nn.Module):
    """Merity, Keskar, Socher 2018 (AWD-LSTM): a drop mask on the recurrent weights, variational dropout, tied word vectors, and a state
    that is carried from one stretch of text to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(13, 5)
        self.layers = nn.ModuleList([nn.LSTM(5, 7), nn.LSTM(7, 5)])
        for layer in self.layers:  # the raw weight under a name of its own, as the paper's code does it
            weight = layer.weight_hh_l0
            del layer._parameters["weight_hh_l0"]
            layer.register_parameter("weight_hh_l0_raw", nn.Parameter(weight.detach()))
        self.vote = nn.Linear(5, 13)
        self.vote.weight = self.words.weight

    def forward(self) -> Tensor:
        text = torch.randint(13, (9, 3), generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        states, loss = [None, None], 0.0
        for begin in (0, 4):
            x = self.words(text[begin : begin + 4])
            for number, layer in enumerate(self.layers):
                layer.weight_hh_l0 = dropout(layer.weight_hh_l0_raw, 0.5)
                x = x * dropout(torch.ones_like(x[:1]), 0.3)  # one mask for all time steps
                x, states[number] = layer(x, states[number])
            loss = loss + cross_entropy(self.vote(x).flatten(0, 1), text[begin + 1 : begin + 5].flatten())
            states = [tuple(part.detach() for part in state) for state in states]
        return loss


class TextReader(nn.Module):
    """Shi, Bai, Yao 2017 (CRNN): convolutions turn an image of a line into a sequence, two BiLSTM layers read it, CTC aligns it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        )
        self.first, self.between = nn.LSTM(24, 5, bidirectional=True), nn.Linear(10, 5)
        self.second, self.vote = nn.LSTM(5, 5, bidirectional=True), nn.Linear(10, 7)

    def forward(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(2, 1, 8, 20, generator=generator).to(self.vote.weight)
        columns = self.conv(image).flatten(1, 2).permute(2, 0, 1)
        read = self.vote(self.second(self.between(self.first(columns)[0]))[0]).log_softmax(-1)
        text = torch.randint(1, 7, (2, 4), generator=generator)
        return ctc_loss(read, text, torch.tensor([10, 10]), torch.tensor([4, 2]))


class Speech(nn.Module):
    """Amodei et al. 2016 (Deep Speech 2): a convolution over time and frequency, bidirectional relu layers with batch normalisation between
    them, whose directions are summed, and CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, (5, 5), stride=(2, 1), padding=(2, 2))
        self.layers = nn.ModuleList([nn.RNN(12, 6, nonlinearity="relu", bidirectional=True), nn.LSTM(6, 6, bidirectional=True)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(12), nn.BatchNorm1d(6)])
        self.vote = nn.Linear(6, 5)

    def forward(self) -> Tensor:
        spectrogram = torch.randn(2, 1, 8, 15, generator=torch.Generator().manual_seed(1)).to(self.vote.weight)
        x = nn.functional.hardtanh(self.conv(spectrogram), 0, 20).flatten(1, 2).permute(2, 0, 1)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = norm(x.permute(1, 2, 0)).permute(2, 0, 1)
            x = layer(x)[0].unflatten(-1, (2, 6)).sum(-2)
        return ctc_loss(self.vote(x).log_softmax(-1), torch.tensor([[1, 2, 1], [3, 4, 0]]), torch.tensor([15, 9]), torch.tensor([3, 2]))


class VoiceActivity(nn.Module):
    """A voice activity detector that listens chunk by chunk: convolutions, a GRU and an LSTM cell, whose states are carried along."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.layer, self.cell, self.vote = nn.Conv1d(1, 4, 8, stride=4), nn.GRU(4, 5), nn.LSTMCell(5, 5), nn.Linear(5, 1)

    def forward(self, sound: Tensor | None = None) -> Tensor:
        if sound is None:
            sound = torch.randn(2, 1, 96, generator=torch.Generator().manual_seed(1)).to(self.vote.weight)
        h, states, voiced = None, None, []
        for chunk in sound.split(32, dim=2):
            features, h = self.layer(self.conv(chunk).permute(2, 0, 1), h)
            for step in features:
                states = self.cell(step, states)
            voiced.append(self.vote(states[0]).sigmoid())
        return torch.cat(voiced).square().mean()


ARCHITECTURES = (Seq2Seq, Tagger, LanguageModel, TextReader, Speech, VoiceActivity)
