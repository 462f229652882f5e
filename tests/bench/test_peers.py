"""Every engine has the reference's results, or says why it has none."""

import sys

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence

from sstkern.bench import peers
from sstkern.bench.cases import DTYPES, LAYERS, LENGTHS, RESTS, Case
from sstkern.bench.peers import Engine, Prepared, Problem, Unavailable
from sstkern.engines import cpu_runs

NAMES = [engine.name for engine in peers.ENGINES]
BY_NAME = {engine.name: engine for engine in peers.ENGINES}
INSTALLED = [BY_NAME[name] for name in NAMES if name != "openvino"]
FORMS = {engine.name: engine for engine in peers.PACKED_ENGINES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("cell", LAYERS)
def test_the_engines_agree_with_the_reference(cell: str, training: bool, lengths: str, dtype: str):
    problem = Problem.of(Case(cell, 5, 6, 7, training, lengths, dtype), 1)
    with peers.ready(problem, INSTALLED) as (prepared, differences, left_out):
        assert set(prepared) | set(left_out) == {engine.name for engine in INSTALLED}
        bound = 1e-5 if dtype == "float32" else 5e-2
        assert all(difference < bound for difference in differences.values()), differences
        assert set(left_out) == (set() if dtype == "float32" and not training else {"onnxruntime"})
        for one in prepared.values():
            output, *gradients = one.results()
            assert output.shape == (6, 5, 7)
            assert len(gradients) == (5 if training else 0)  # of x, two weights and two biases
            assert min(one.block(0.0)) > 0


@pytest.mark.parametrize("lengths", RESTS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("cell", LAYERS)
def test_the_forms_of_packed_sequences_agree_with_the_reference(cell: str, training: bool, lengths: str):
    problem = Problem.of(Case(cell, 5, 26, 7, training, lengths), 1)
    with peers.ready(problem, peers.PACKED_ENGINES) as (prepared, differences, left_out):
        assert (list(prepared), left_out) == (list(FORMS), {})
        assert all(difference < 1e-5 for difference in differences.values()), differences
        for one in prepared.values():
            output, *gradients = one.results()
            assert output.shape == (problem.case.tokens, 7)
            assert len(gradients) == (5 if training else 0)
            assert min(one.block(0.0)) > 0


@pytest.mark.parametrize(
    ("name", "form", "ours"),
    [
        ("sstkern_packed", "packed (8, 3)", True),
        ("sstkern_nested", "nested 8 [5, 1, 1, 1]", True),
        ("sstkern_padded", "padded (5, 4, 3)", True),
        ("torch_packed", "packed (8, 3)", False),
    ],
)
def test_a_layer_is_given_the_form_of_its_engine(name: str, form: str, ours: bool):
    problem = Problem.of(Case("LSTM", 4, 5, 3, training=True, lengths="rest_1"), 1)
    prepared, given = FORMS[name].prepare(problem), []

    def note(layer: torch.nn.Module, arguments: tuple) -> None:
        given.append((_described(arguments[0]), type(layer).__module__.startswith("sstkern")))

    with register_module_forward_pre_hook(note):
        prepared.results()
    assert given == [(form, ours)]


def _described(x: Tensor | PackedSequence) -> str:
    if isinstance(x, PackedSequence):
        return f"packed {tuple(x.data.shape)}"
    return f"nested {len(x.values())} {x.offsets().diff().tolist()}" if x.is_nested else f"padded {tuple(x.shape)}"


def test_a_batch_too_large_to_be_padded_is_not(monkeypatch: pytest.MonkeyPatch):
    case = Case("LSTM", 4, 2**20, 3, lengths="rest_1")  # 48 MiB padded
    problem = Problem(case, 1, torch.zeros(1, 3), torch.tensor([1]), torch.zeros(1, 3), Problem.of(Case("LSTM", 1, 1, 3), 1).state)
    monkeypatch.setattr(peers, "MOST_PADDED", 2**24)
    with pytest.raises(Unavailable, match="padded, x alone has 48 MiB, more than 16"):
        peers.sstkern_padded(problem)


def test_packed_sequences_are_timed_where_lengths_vary():
    def names(lengths: str) -> list[str]:
        return [engine.name for engine in peers.ours_and_torch(Case("LSTM", 2, 3, 4, lengths=lengths))]

    assert names("full") == ["sstkern", "torch"]
    assert names("sst2") == ["sstkern", "torch", "torch_packed"]
    assert names("rest_1") == ["sstkern_packed", "sstkern_nested", "sstkern_padded", "torch_packed"]


def test_only_some_run_bfloat16_and_training():
    for case, reason in (
        (Case("LSTM", 2, 3, 4, training=True), "inference only"),
        (Case("LSTM", 2, 3, 4, dtype="bfloat16"), "float32 only"),
    ):
        with peers.ready(Problem.of(case, 1), peers.ENGINES) as (prepared, _, left_out):
            assert left_out == {"onnxruntime": reason, "openvino": reason}
            assert list(prepared) == NAMES[:4]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with peers.ready(Problem.of(Case("LSTM", 2, 3, 4), 1), [BY_NAME[name]]) as (prepared, _, left_out):
        assert prepared == {}
        assert left_out == {name: f'{name} is not installed: pip install "sstkern[bench]"'}


def test_problems_are_the_same_each_time_and_leave_the_random_numbers_alone():
    case = Case("GRU", 4, 5, 6, lengths="sst2")
    before = torch.get_rng_state()
    one, other = Problem.of(case, 1), Problem.of(case, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.x, other.x)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    for b, length in enumerate(case.valid):
        assert (one.grad[:length, b] != 0).all()
        assert (one.grad[length:, b] == 0).all()


def test_ours_is_timed_on_the_c_engine_and_the_reference_is_not_it():
    problem = Problem.of(Case("LSTM", 2, 3, 4), 1)
    before = cpu_runs()["forward"]
    problem.expected()
    assert cpu_runs()["forward"] == before
    peers.sstkern_layer(problem).results()
    assert cpu_runs()["forward"] == before + 1
    packed = Problem.of(Case("LSTM", 2, 3, 4, lengths="rest_1"), 1)
    packed.expected()
    assert cpu_runs()["forward"] == before + 1
    for engine in peers.PACKED_ENGINES[:3]:
        engine.prepare(packed).results()
    assert cpu_runs()["forward"] == before + 4


def test_without_the_extension_ours_is_not_the_slow_engine_in_its_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sstkern.engines.extension_problem", lambda: "it is not built")
    with peers.ready(Problem.of(Case("LSTM", 2, 3, 4), 1), peers.ENGINES[:2]) as (prepared, _, left_out):
        assert list(prepared) == ["torch"]
        assert left_out == {"sstkern": "failed: BackendError: backend: 'cpu' cannot run here: it is not built"}


def test_onednn_is_off_for_one_engine_only_while_it_runs():
    seen = []
    prepared = peers.torch_without_onednn(Problem.of(Case("LSTM", 2, 3, 4), 1))
    run = prepared.run
    prepared.run = lambda: (seen.append(torch.backends.mkldnn.enabled), run())[1]
    prepared.results()
    assert (seen, torch.backends.mkldnn.enabled) == ([False], True)


def fake(name: str, results, closed: list[str]) -> Engine:
    def prepare(problem: Problem) -> Prepared:
        class Closing(Prepared):
            def close(self) -> None:
                closed.append(name)

        return Closing(lambda: results(problem), training=False)

    return Engine(name, prepare)


def test_a_wrong_a_failing_and_an_absent_engine_are_named_and_not_timed():
    def refuse(problem: Problem) -> Prepared:
        raise Unavailable("too long")

    def fail(problem: Problem):
        raise RuntimeError("no such kernel\nand more")

    closed: list[str] = []
    engines = [
        fake("right", lambda problem: [problem.expected()[0]], closed),
        fake("wrong", lambda problem: [problem.expected()[0] + 0.1], closed),
        fake("not a number", lambda problem: [problem.expected()[0] * torch.nan], closed),
        fake("failing", fail, closed),
        Engine("absent", refuse),
    ]
    with peers.ready(Problem.of(Case("RNN", 2, 3, 4), 1), engines) as (prepared, _, left_out):
        assert list(prepared) == ["right"]
        assert left_out["wrong"].startswith("wrong: differs from the reference by 1")
        assert left_out["not a number"] == "wrong: differs from the reference by nan"
        assert left_out["failing"] == "failed: RuntimeError: no such kernel"
        assert left_out["absent"] == "too long"
        assert closed == []
    assert sorted(closed) == ["failing", "not a number", "right", "wrong"]


def test_what_lies_past_a_length_is_no_difference():
    problem = Problem.of(Case("LSTM", 2, 9, 4, lengths="sst2"), 1)
    expected = problem.expected()
    garbage = expected[0] + 5 * (1 - problem.masked(torch.ones_like(expected[0])))
    assert not torch.equal(garbage, expected[0])
    assert peers.difference(problem, [garbage], expected) == 0
    with pytest.raises(ValueError, match="2 results, expected 1"):
        peers.difference(problem, [garbage, garbage], expected)


def test_importing_the_library_does_not_import_the_suite():
    import subprocess

    code = "import sys, sstkern; print(*[name for name in sys.modules if name.startswith(('sstkern.bench', 'onnx', 'openvino'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
