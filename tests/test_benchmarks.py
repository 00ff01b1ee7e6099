"""The benchmark's arithmetic on made-up numbers, and two tiny contestants through the whole of it."""

import itertools
from collections import Counter

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn

from benchmarks import arithmetic, cost, images, pairs, profile, run, stems, timing
from benchmarks.jax_step import temporary_bytes
from benchmarks.pairs import CACHED, KD, ONLINE, PYTORCH
from benchmarks.worker import jax_spec, torch_spec
from sdd_jax import data, kd_loss, methods, standardized
from sdd_jax.models import layers
from sdd_jax.training import compiling

TINY = {"batch": 4, "classes": 10}


def test_a_ratio_is_the_median_of_the_rounds_own():
    seconds, others = [1.0, 4.0, 3.0, 40.0, 2.0], [2.0, 4.0, 2.0, 20.0, 1.0]  # the fourth round was slow for both
    assert timing.ratio(seconds, others) == (1.5, 1.0, 2.0)
    with pytest.raises(ValueError):
        timing.ratio([1.0, 2.0], [1.0])


def test_every_contestant_is_first_and_last_at_times():
    names = ["a", "b", "c"]
    orders = [timing.order_of_round(names, number) for number in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert orders[:2] == [["a", "b", "c"], ["a", "c", "b"]]
    for place in (0, -1):
        assert {order[place] for order in orders} == set(names)


def test_the_quietest_rounds_are_kept_in_their_order():
    assert timing.quietest([0.5, 0.0, 0.2, 0.01], 2) == [1, 3]
    assert timing.quietest([0.2, 0.0], 2) == [0, 1]


class MadeUpWorker:
    """Takes no time; notes how many steps it was asked for."""

    started = {"start": 3.0, "compile": 2.0}

    def __init__(self, spec):
        self.of_a_step, self.asked, self.ended = spec["of_a_step"], spec["asked"], False

    def seconds(self, steps):
        self.asked.append(steps)
        return self.of_a_step, 0.0

    def close(self):
        return 2**20

    def end(self):
        self.ended = True


def test_a_turn_has_steps_for_a_second_and_at_least_one(monkeypatch):
    monkeypatch.setattr(timing, "Worker", MadeUpWorker)
    monkeypatch.setattr(timing, "busy_seconds", lambda: 0.0)
    asked = {seconds: [] for seconds in (0.01, 0.3, 0.9, 5.0)}
    specs = {str(seconds): {"of_a_step": seconds, "asked": steps} for seconds, steps in asked.items()}
    measured = timing.contest(specs, rounds=2)
    warm_up = timing.WARM_UP
    assert list(asked.values()) == [[warm_up, 100, 100], [warm_up, 3, 3], [warm_up, 1, 1], [warm_up, 1, 1]]
    assert measured.seconds["0.3"] == [0.3, 0.3] and measured.others == [0.0, 0.0]


def made_up(**changes):
    seconds = {
        PYTORCH[0]: [2.0, 2.2, 2.1],
        PYTORCH[1]: [1.0, 1.1, 4.0],
        ONLINE: [0.9, 1.0, 3.6],
        CACHED: [0.6, 0.66, 2.4],
        KD: [0.9, 0.95, 3.6],
    } | changes
    started = {name: {"start": 3.0, "compile": None if name in PYTORCH else 2.0} for name in seconds}
    return timing.Contest(seconds, started, dict.fromkeys(seconds, 2**30), [0.01, 0.02, 0.3])


def test_a_row_holds_the_ratios_to_the_faster_of_pytorchs_formats_against_their_bounds():
    text = "\n".join(pairs.lines([("vgg13 -> vgg8", 0.5, made_up())]))
    assert "median of 3 rounds" in text and "took at most 30% of the machine" in text
    assert "| vgg13 -> vgg8 | 2.100 | **1.100** | 1.000 | 0.660 | 0.950 |" in text
    assert "| vgg13 -> vgg8 | SDD-KD / PyTorch | 0.900 | 0.900 to 0.905 | 1.0 | met |" in text
    assert "| vgg13 -> vgg8 | cached / PyTorch | 0.600 | 0.600 to 0.600 | 0.5 | missed |" in text
    assert "| vgg13 -> vgg8 | SDD-KD / KD | 1.000 | 1.000 to 1.026 | 1.03 | met |" in text
    assert "| vgg13 -> vgg8 | KD | 3.0 | 2.0 | 1024 |" in text
    assert f"| vgg13 -> vgg8 | {PYTORCH[0]} | 3.0 |  | 1024 |" in text


@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(3, 1, (8, 8)), (3, 2, (9, 8)), (7, 2, (16, 15)), (1, 2, (7, 8))]
)
def test_convolutions_in_products_are_convolutions(size, stride, shape):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        network = layers.conv(5, size, stride, use_bias=True, dtype=np.float64, name="conv")
        x = rng.normal(size=(2, *shape, 3))
        values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), network.init(jax.random.key(0), x))

        def loss(values, x):
            return jax.numpy.sum(network.apply(values, x) ** 3)

        expected = jax.value_and_grad(loss, (0, 1))(values, x)
        with nn.intercept_methods(arithmetic.in_products):
            found = jax.value_and_grad(loss, (0, 1))(values, x)
    chex.assert_trees_all_close(found, expected, rtol=1e-9)


def test_operations_of_a_program_are_known_by_their_kinds():
    def loss(kernels, x):
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x.mean((1, 2)).sum()

    kernels = [np.ones((3, 3, 3, 16), np.float32), np.ones((3, 3, 16, 8), np.float32)]
    step = compiling.jit_network(jax.grad(loss)).lower(kernels, np.ones((4, 32, 32, 3), np.float32)).compile()
    found = Counter(profile.kinds_of(step.as_text()).values())
    assert (found[profile.FORWARD], found[profile.GRADIENTS], found[profile.KERNELS]) == (1, 1, 2)  # none of the sum
    pool = jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum())
    pooled = compiling.jit_network(pool).lower(np.ones((4, 32, 32, 8), np.float32)).compile()
    assert profile.REDUCED in profile.kinds_of(pooled.as_text()).values()
    product = jax.jit(lambda x, y: (x @ y).sum()).lower(*[np.ones((500, 500), np.float32)] * 2).compile()
    assert profile.PRODUCTS in profile.kinds_of(product.as_text()).values()


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_a_steps_seconds_are_those_of_its_operations(cached):
    seconds = profile.profiled(jax_spec("resnet8", "resnet8", cached=cached, **TINY))
    assert min(seconds[kind] for kind in (profile.FORWARD, profile.GRADIENTS, profile.KERNELS)) > 0


def test_memory_is_held_against_its_bound_where_there_is_one():
    cells = cost.memory_cells(1000, 212 * 2**20, 200 * 2**20, 106 * 2**20, 1.05)
    assert cells == ("1,000", "212.0", "200.0", "1.060", 1.05, "missed", "106.0 MiB, 50%")
    assert cost.memory_cells(21_841, 2, 1, 1, None)[4:6] == ("", "")


@pytest.mark.slow
def test_a_steps_memory_grows_with_the_batch():
    spec = jax_spec("resnet8", "resnet8")
    small, large = (temporary_bytes(spec | {"batch": batch}) for batch in (16, 64))
    assert 2 * small < large < 4.5 * small


def test_every_base_loss_is_timed_with_its_own_numbers_at_every_size(monkeypatch):
    asked = []

    def measured(name, classes, scales):
        asked.append((name, classes, scales))
        return len(asked)

    monkeypatch.setattr(cost, "method_milliseconds", measured)
    lines = cost.methods_section()
    assert [line.split(" | ")[0].strip("| ") for line in lines[-len(methods.BASES) :]] == list(methods.BASES)
    assert len(set(asked)) == len(asked) == 4 * len(methods.BASES)
    pair = np.random.default_rng(0).normal(size=(2, 4, 12)).astype(np.float32)
    cold, wkd = cost.base_loss("ls_kd", 12)(*pair), cost.base_loss("wkd", 12)(*pair, np.arange(4))
    np.testing.assert_allclose(cold, standardized(kd_loss)(*pair, temperature=2.0), rtol=1e-6)
    assert np.isfinite(wkd).all()


def test_seeds_together_are_held_against_as_many_alone():
    contest = timing.Contest({cost.TOGETHER: [2.0, 3.0, 2.0], cost.APART: [1.0, 1.0, 1.0]}, {}, {}, [])
    rows = cost.seeds_lines([contest] * len(cost.SEEDS_CASES))
    assert rows[-3] == "| resnet20 -> resnet8 | 2.000 | 4.000 | 0.500 | 0.500 to 0.625 | 0.9 | met |"
    assert rows[-1].startswith("| resnet32x4 -> resnet8x4, cached | 2.000 |") and rows[-1].endswith("|  |  |")


def test_sections_are_chosen_by_name(capsys):
    assert run.chosen_sections("start,pairs") == ["start", "pairs"]
    with pytest.raises(SystemExit):
        run.main(["--only=speed"])
    assert "no section 'speed': there are pairs" in capsys.readouterr().err


def test_a_section_that_cannot_be_measured_is_said_and_the_others_are(capsys, monkeypatch):
    def needs():
        raise ModuleNotFoundError("a traceback of a worker\nNo module named 'torch'")

    monkeypatch.setattr(run, "SECTIONS", {"pairs": needs, "loss": lambda: ["## Losses"]})
    assert run.main(["--only=pairs,loss"]) == 1
    assert "## pairs\n\nNot measured: ModuleNotFoundError: No module named 'torch'\n" in (
        out := capsys.readouterr().out
    )
    assert out.endswith("## Losses\n\n")


@pytest.mark.slow
def test_two_contestants_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "TURN_SECONDS", 0.1)
    specs = {
        PYTORCH[1]: torch_spec("resnet8", "resnet8", "channels_last", **TINY),
        CACHED: jax_spec("resnet8", "resnet8", cached=True, chosen_libraries=False, **TINY),
    }
    measured = timing.contest(specs, rounds=2)
    parts = measured[:3]
    assert all(list(part) == list(specs) for part in parts)
    assert len(measured.others) == 2 and all(0 <= share <= 1.1 for share in measured.others)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in measured.seconds.values())
    assert measured.started[PYTORCH[1]]["compile"] is None
    assert 0 < measured.started[CACHED]["compile"] < measured.started[CACHED]["start"]
    assert min(measured.peak_bytes.values()) > 50 * 2**20
    everyone = {PYTORCH[0]: PYTORCH[1], PYTORCH[1]: PYTORCH[1], ONLINE: CACHED, CACHED: CACHED, KD: CACHED}
    filled = timing.Contest(
        *({name: part[source] for name, source in everyone.items()} for part in parts), measured.others
    )
    lines = pairs.lines([("resnet8 -> resnet8", 0.5, filled)])
    assert sum(line.startswith("| resnet8 -> resnet8 |") for line in lines) == 1 + 3 + 5


def test_a_contestant_that_does_not_start_is_reported_with_its_stderr():
    with pytest.raises(timing.WorkerDied, match="(?s)nothing.*ended with 1:.*KeyError: 'keeps_memory'"):
        timing.contest({"one": {"kind": "nothing"}}, rounds=1)


@pytest.mark.slow
def test_a_contestant_that_dies_is_reported_with_its_stderr():
    worker = timing.Worker(torch_spec("resnet8", "resnet8", "contiguous", **TINY))
    with pytest.raises(timing.WorkerDied, match="(?s)ended with 1:.*ValueError: invalid literal"):
        worker.seconds("many")


# ---------------------------------------------------------------------- images


def test_images_a_second_are_those_of_the_median_round():
    row = images.cells("name", [2.0, 1.0, 4.0], [4.0, 4.0, 4.0])
    made = images.STEPS * images.BATCH
    assert row == ("name", f"{made / 2:.0f}", f"{made / 4:.0f}", "2.00", "1.50 to 3.00")


def test_a_round_starts_anew_and_counts_after_its_first_batches(monkeypatch):
    moments, taken = iter(range(0, 1000, 10)), []
    monkeypatch.setattr(images.time, "perf_counter", lambda: next(moments))

    def start():
        taken.append(0)
        while True:
            taken[-1] += 1
            yield

    assert images.rounds(start, start) == [[10] * images.ROUNDS] * 2
    assert taken == [images.WARM_UP + images.STEPS] * 2 * images.ROUNDS


@pytest.mark.slow
def test_both_pipelines_make_the_batches_that_they_are_timed_for(tmp_path, monkeypatch):
    for name, value in (("COUNT", 4), ("BATCH", 2), ("STEPS", 3), ("SIZE", 32)):
        monkeypatch.setattr(images, name, value)
    assert images.write_photographs(tmp_path) == sum(
        path.stat().st_size for path in (tmp_path / "train" / "only").iterdir()
    )
    ours, plain = (list(itertools.islice(make(tmp_path, None)(), 4)) for make in (images.ours, images.plain))
    assert [(batch.shape, str(batch.dtype)) for batch in ours] == [((2, 32, 32, 3), "uint8")] * 4
    assert [(tuple(batch.shape), str(batch.dtype)) for batch in plain] == [((2, 3, 32, 32), "torch.float32")] * 4
    mean, std = (np.array(values) for values in data.INFO["imagenet"][4:6])
    normalised = (np.concatenate(ours) / 255 - mean) / std
    assert abs(normalised.mean() - np.mean([batch.numpy().mean() for batch in plain])) < 0.2  # of the same pictures


def test_where_memory_cannot_be_kept_nothing_is_claimed_of_it(monkeypatch):
    monkeypatch.setattr(cost, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(timing, "contest", None)
    assert cost.allocator_section()[-1].startswith("Not measured: JAX has another device")


@pytest.mark.slow
def test_a_step_of_small_images_has_a_time():
    row = stems.section([("resnet8", "cub200", 16)])[-1]
    name, stem, pixels, clock, processor = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, stem, pixels) == ("resnet8", "cub200", "16") and float(clock) > 0 and float(processor) > 0
