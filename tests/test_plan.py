"""Planning: arithmetic by hand, names of slices, the search, and that the program is the training loop's own."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import sets

from sdd_jax import planning
from sdd_jax.build import assemble, check, load_data, make_parts
from sdd_jax.build_shapes import train_examples
from sdd_jax.build_teacher import folded_variables
from sdd_jax.commands.plan import as_text, by_method, make_plan, pair_up, read_settings
from sdd_jax.config import image_dtype
from sdd_jax.configs import image_folder, quickstart
from sdd_jax.mesh import make_mesh
from sdd_jax.planning import (
    CHIPS,
    FORM,
    GIB,
    find_largest,
    make_program,
    parse_topology,
)
from sdd_jax.training.programs import Programs
from sdd_jax.training.teacher import live_teacher

REFUSED = {"fits": False, "compiler": "RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm."}


def compiled(flops=39.4e12, bytes=81.9e9, reduced_bytes=20_000_000, total=8 * GIB):
    memory = {"params": GIB, "optimizer": GIB, "teacher": GIB, "data": GIB, "temporary": 4 * GIB, "total": total}
    figures = {"fits": True, "memory_bytes": memory, "flops": flops, "bytes": bytes, "compile_seconds": 60.0}
    return figures | {"collectives": {"operand_bytes": reduced_bytes}}


# ---------------------------------------------------------------------- figures


def seconds(name, **figures):
    plan = make_plan(parse_topology(name), 64, 2, 1000, {"kd": compiled(**figures)}, None)
    return plan["methods"][0]["seconds"], plan["methods"][0]["hours"]


def test_a_step_takes_the_larger_of_compute_and_memory_and_the_network_on_top():
    """v5e: 197 TFLOP/s, 819 GB/s, 200 GB/s each way; of 4 chips each sends 3/2 of what is all-reduced."""
    least, hours = seconds("v5e:2x2", flops=394e12, bytes=409.5e9, reduced_bytes=200e9 / 3)
    assert least == pytest.approx({"compute": 2.0, "memory": 0.5, "network": 0.5, "step": 2.5})
    assert hours == pytest.approx(32 * 2.5 / 3600)  # 2 epochs of 1000 images at batch 64 are 31.25 steps
    least, _ = seconds("v5e:1x1", flops=19.7e12, bytes=819e9, reduced_bytes=1e9)
    assert least == pytest.approx({"compute": 0.1, "memory": 1.0, "network": 0.0, "step": 1.0})


def plans():
    """One that fits, at twice the operations of the other method, and one that does not."""
    v5e = parse_topology("v5e:2x2")
    both = {"sdd_kd": compiled(), "kd": compiled(flops=19.7e12)}
    return [
        make_plan(v5e, 512, 100, 1000, both, {"per_chip": 256, "compilations": 2}),
        make_plan(v5e, 4096, 100, 1000, {"kd": REFUSED}, None),
    ]


def test_the_table_has_a_column_for_each_plan():
    text = as_text(plans())
    assert "sdd_kd (over kd)" in text and "39400.0 (2.0000)" in text
    assert "fits 16 GiB, 8.00 free" in text and "NO: more than 16 GiB" in text
    assert "1024 (256 a chip)" in text
    assert "200.150" in text and "2558" in text  # 200 ms, 0.15 on the network; 512 images in 200.15 ms
    assert "kd at batch size 4096 does not fit v5e:2x2: RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm." in text
    assert text.count("16 GiB at 819 GB/s") == 1
    lines = text.splitlines()[:20]
    assert len({len(line) for line in lines}) == 1
    other = plans()[1] | {"topology": "v6e:2x2", "hbm_bytes": CHIPS["v6e"].hbm_bytes}
    assert "32 GiB at 819 GB/s" in as_text([plans()[0], other])


def test_json_has_every_figure():
    fits, refused = json.loads(json.dumps(plans()))
    own, other = fits["methods"]
    assert own["memory_bytes"]["temporary"] == 4 * GIB and fits["largest"]["batch_size"] == 1024
    assert own["seconds"]["step"] == pytest.approx(0.20015) and other["seconds"]["compute"] == pytest.approx(0.1)
    assert own["collectives"] == {"operand_bytes": 20_000_000, "sent_bytes": 30_000_000}
    assert refused["methods"] == [{"method": "kd", **REFUSED}]
    assert refused["largest"] is None


# ---------------------------------------------------------------------- the largest batch


def search(per_chip, size, parts=1):
    """``find_largest`` where a program takes ``size(count)`` of 16 GiB, 15.75 of them usable; and what it tried."""
    tried = []

    def measure(count):
        tried.append(count)
        return REFUSED if size(count) > 15.75 * GIB else compiled(total=size(count))

    found = find_largest(per_chip, measure(per_chip), 16 * GIB, measure, parts)
    assert not any(count % parts for count in tried)
    assert found["compilations"] == len(tried) - 1
    return found["per_chip"], tried[1:]


def test_the_search_ends_where_the_line_through_two_sizes_meets_the_memory():
    """1 GiB and 1/64 for each image reach 15.75 GiB at 944."""
    assert search(128, lambda count: (1 + count / 64) * GIB) == (944, [672, 944])
    assert search(2048, lambda count: (1 + count / 64) * GIB) == (944, [1024, 512, 896, 944])
    assert search(16, lambda count: count / 64 * GIB) == (1008, [1008])
    # Near the limit it is not quite a line: the larger two sizes that fit count, and what was refused is not passed.
    found, tried = search(128, lambda count: (1 + count / 64 + (count / 1024) ** 4) * GIB)
    assert found in tried and 888 <= found <= 904 and len(tried) <= planning.COMPILATIONS


def test_the_search_halves_what_is_refused_and_says_if_nothing_fits():
    assert search(512, lambda count: (1 + count) * GIB) == (8, [256, 128, 64, 32, 16, 8])
    assert search(6, lambda count: 20 * GIB) == (0, [3, 1])


def test_the_sizes_of_a_search_divide_into_the_parts_of_a_batch():
    assert search(120, lambda count: (1 + count / 64) * GIB, parts=12) == (936, [648, 936])
    assert search(120, lambda count: (1 + count / 4) * GIB, parts=12) == (48, [48])
    assert search(60, lambda count: 20 * GIB, parts=12) == (0, [24, 12])


def test_a_size_that_the_compiler_squeezed_does_not_end_the_search():
    sizes = {128: 13 * GIB, 152: 12 * GIB, 192: 15.5 * GIB}
    found, tried = search(128, lambda count: sizes.get(count, (count / 12) * GIB))
    assert tried[0] == 152 and tried[1] > 152 and found >= 152


# ---------------------------------------------------------------------- topologies


def test_topologies_are_chips_and_sides():
    assert parse_topology("v5e:16x16") == ("v5e:16x16", CHIPS["v5e"], 256)
    assert parse_topology("v4:2x2x4").chips == 16
    examples = FORM.rpartition("such as ")[2].split(", ")
    assert [parse_topology(example).chip for example in examples] == list(CHIPS.values())


@pytest.mark.parametrize("name", ["v5e:3x5", "v5e:2x2x2", "v6e:4x2", "v4:2x4", "v4:4x4x2", "v5p:3x3x3", "v5p:0x0x0"])
def test_slices_that_do_not_exist_are_refused(name):
    with pytest.raises(ValueError, match="does not exist: .* slices are .*2x2"):
        parse_topology(name)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:16", "16x16", "v5e:2*2", "v9:2x2"])
def test_what_is_no_topology_is_refused_and_the_form_named(name):
    with pytest.raises(ValueError, match="v5e:16x16|v5e slices are"):
        parse_topology(name)


def test_topologies_and_batch_sizes_go_in_pairs():
    small, large = parse_topology("v5e:2x2"), parse_topology("v5e:4x4")
    assert pair_up(["v5e:2x2", "v5e:4x4"], ["64"]) == [(small, 64), (large, 64)]
    assert pair_up(["v5e:2x2"], ["64", "128"]) == [(small, 64), (small, 128)]
    assert pair_up(["v5e:2x2", "v5e:4x4"], ["64", "256"]) == [(small, 64), (large, 256)]
    for sizes, message in ((["64", "128", "256"], "pairs"), (["many"], "whole numbers"), (["66"], "64 or 68 would")):
        with pytest.raises(ValueError, match=message):
            pair_up(["v5e:2x2", "v5e:4x4"], sizes)


# ---------------------------------------------------------------------- the program


def loop_and_plan(config):
    """The loop's program of a config, lowered with its real arrays, and the plan's, lowered with shapes."""
    settings = check(config.to_dict())
    dataset = load_data(settings)
    parts = make_parts(settings, dataset.num_classes)
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings))
    shapes = jax.eval_shape(partial(parts.teacher.init, train=False), jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    folded = folded_variables(settings, parts.teacher, variables, dataset)
    built = assemble([settings], parts, dataset, live_teacher(parts.teacher, folded, parts.objective.regions))[0]
    assert train_examples(settings) == len(dataset.train.index)
    programs = Programs([built])
    try:
        states = programs.stack([programs.begin(jax.random.key(0))])
        arguments = (states, *programs.arrays(0), jax.device_put(jnp.int32(1), programs.on_all))
        run_chunk, shapes = make_program(settings, make_mesh())
        described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), arguments)
        planned = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes)
        assert described == planned
        return programs.run_chunk.lower(*arguments).as_text(), run_chunk.lower(*shapes).as_text()
    finally:
        programs.data.close()


def test_the_program_is_the_loops_own_for_data_in_memory():
    config = quickstart.get_config("run=sdd_kd")
    config.model.teacher = config.argument.teacher = "resnet8"
    config.data.select_on = "test"  # nothing held out: how many images are left is known beforehand
    config.steps_per_call = 3
    loop, plan = loop_and_plan(config)
    assert loop == plan


def test_the_program_is_the_loops_own_for_data_on_disk(tmp_path):
    sets.write_folder(tmp_path, classes=["a", "b", "c"], train=4, test=2)
    config = image_folder.get_config("teacher=resnet8,student=resnet8,method=sdd_kd")
    config.model.stem, config.data.image_size, config.batch_size = "cifar", 32, 4
    config.data.path, config.data.select_on, config.data.train_examples = str(tmp_path), "test", 12
    config.data.in_memory = False
    loop, plan = loop_and_plan(config)
    assert loop == plan


def test_another_method_changes_the_method_alone():
    settings = check(quickstart.get_config("run=sdd_kd").to_dict())
    kd = by_method(settings, "kd", 128)
    assert {name for name in kd if kd[name] != settings[name]} == {"method", "batch_size"}


class Lowered:
    """Stands for a program that the compiler refuses."""

    def __init__(self, error):
        self.error = error

    def lower(self, *arguments):
        return self

    def compile(self):
        raise self.error


def test_a_refusal_for_memory_is_an_answer_and_another_error_is_not(monkeypatch):
    settings = check(quickstart.get_config("run=kd").to_dict())
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 24.23G of 15.75G hbm.\n\nProgram hbm requirement: ...")
    monkeypatch.setattr(planning, "make_program", lambda *_: (Lowered(full), ()))
    refused = planning.compile_step(settings, make_mesh())
    assert refused == {"fits": False, "compiler": "RESOURCE_EXHAUSTED: Used 24.23G of 15.75G hbm."}
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    monkeypatch.setattr(planning, "make_program", lambda *_: (Lowered(other), ()))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        planning.compile_step(settings, make_mesh())


def test_what_has_no_plan_is_refused():
    sequence = quickstart.get_config()
    with pytest.raises(ValueError, match="choose one of .*sdd_kd"):
        read_settings(sequence.to_dict())
    config = quickstart.get_config("run=sdd_kd")
    config.seeds = (0, 1)
    with pytest.raises(ValueError, match="leave seeds out"):
        read_settings(config.to_dict())
    config.seeds = ()
    config.teacher.cache = "cache"
    with pytest.raises(ValueError, match="leave teacher.cache out"):
        read_settings(config.to_dict())
