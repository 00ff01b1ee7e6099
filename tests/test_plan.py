"""Planning: arithmetic by hand, names of slices, the text of compiled programs, and that the step is the loop's own."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import sets

from configs import image_folder, quickstart
from sdd_jax.build import assemble, check, make_parts
from sdd_jax.build_data import load_data
from sdd_jax.build_teacher import asked_live
from sdd_jax.commands.plan import by_method, pair_up, read_settings
from sdd_jax.config import image_dtype
from sdd_jax.mesh import make_mesh
from sdd_jax.planning import kept, topology
from sdd_jax.planning.chips import CHIPS, GIB
from sdd_jax.planning.collectives import Collectives, read_collectives, shape_bytes
from sdd_jax.planning.compile import Compiled, Memory, TooLarge, make_program, read_refusal, train_examples
from sdd_jax.planning.largest import Largest, find_largest
from sdd_jax.planning.report import Figures, Plan, as_json, as_text
from sdd_jax.planning.roofline import bound, hours, largest
from sdd_jax.training.programs import Programs


def test_a_bound_is_the_larger_of_compute_and_memory_and_the_network_on_top():
    """v5e: 197 TFLOP/s, 819 GB/s, 200 GB/s each way."""
    assert bound(CHIPS["v5e"], flops=394e12, bytes=409.5e9, sent_bytes=100e9) == (2.0, 0.5, 0.5, 2.5)
    assert bound(CHIPS["v5e"], flops=19.7e12, bytes=819e9, sent_bytes=0).step == 1.0


def test_hours_count_whole_steps():
    """2 epochs of 1000 images at batch 64 are 31.25 steps, so 32, of 225 s: 7200 s."""
    assert hours(225, epochs=2, num_examples=1000, batch_size=64) == 2.0


def test_the_largest_batch_is_on_the_line_through_two():
    """3 at 128 and 5 at 256: 1 + n / 64, which reaches 15.75 at 944; 15.8 at 947.2."""
    assert largest((128, 3), (256, 5), 15.75, 8) == 944
    assert largest((128, 3), (256, 5), 15.8, 8) == 944 and largest((128, 3), (256, 5), 15.8, 1) == 947
    assert largest((128, 3), (256, 5), 0.5, 8) == 0


def search(per_chip, size):
    """``find_largest`` where a program takes ``size(count)`` of 16 GiB, 15.75 of them usable; and what it tried."""
    tried = []

    def measure(count):
        tried.append(count)
        if size(count) > 15.75 * GIB:
            raise TooLarge(size(count), 15.75 * GIB)
        return size(count)

    return find_largest(per_chip, size(per_chip), 16 * GIB, measure), tried


def test_the_search_compiles_a_second_size_and_the_one_that_it_finds():
    assert search(128, lambda count: (1 + count / 64) * GIB) == (Largest(944, True, 2), [256, 944])
    assert search(2048, lambda count: (1 + count / 64) * GIB) == (Largest(944, True, 2), [1024, 944])
    assert search(16, lambda count: count / 64 * GIB) == (Largest(1008, True, 2), [496, 1008])
    # Near the limit it is not quite a line: the third size goes into the next one.
    found, tried = search(128, lambda count: (1 + count / 64 + (count / 1024) ** 4) * GIB)
    assert found.compiled and found.per_chip == tried[-1] < 944 and len(tried) == 3


def test_the_search_says_what_it_could_not_confirm():
    found, _ = search(128, lambda count: 20 * GIB + count * 1000)
    assert found.per_chip == 0 and not found.compiled


HLO = """
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

ENTRY %main {
  %p.0 = f32[3,3,16,32]{3,2,1,0:T(8,128)S(1)} parameter(0), metadata={op_name="all-reduce(%x)"}
  %p.1 = bf16[100]{0:T(1024)(128)(2,1)} parameter(1)
  %p.2 = s32[]{:T(128)} parameter(2)
  %p.3 = f32[64]{0} parameter(3)
  %all-reduce.1 = (f32[3,3,16,32]{3,2,1,0}, /*index=1*/bf16[100]{0}) all-reduce(%p.0, /*index=1*/%p.1), to_apply=%sum
  %all-reduce-start.2 = s32[]{:T(128)} all-reduce-start(%p.2), to_apply=%sum
  %all-reduce-done.2 = s32[]{:T(128)} all-reduce-done(%all-reduce-start.2)
  %all-gather.3 = f32[256]{0} all-gather(%p.3), dimensions={0}
  %reduce-scatter.4 = f32[16]{0} reduce-scatter(%p.3), dimensions={0}
  ROOT %fusion.5 = f32[64]{0} fusion(%all-gather.3, %p.3), kind=kLoop, calls=%all-reduce-like
}
"""


def test_collectives_are_read_from_a_programs_text():
    """Into them go 4608 * 4 + 100 * 2, 4, 256 and 256 bytes; of 4 chips each sends 3/2, 3/2, 3 and 3/4 of that."""
    assert read_collectives(HLO, 4) == (4, 18632 + 4 + 256 + 256, 18636 * 1.5 + 256 * 3 + 256 * 0.75)


def test_shapes_are_counted_without_their_layout():
    assert shape_bytes("(f32[2,3]{1,0:T(8,128)S(1)}, pred[5]{0}, u8[]{:T(128)})") == 24 + 5 + 1
    assert shape_bytes("bf16[4,4]{1,0:T(8,128)(2,1)}") == 32


def test_a_refusal_says_how_much_is_needed():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.23G of 15.75G hbm. Exceeded by 8.48G."
    error = read_refusal(message)
    assert isinstance(error, TooLarge) and (error.used, error.usable) == (24.23 * GIB, 15.75 * GIB)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (81.00G) exceeds "
        "available HBM (15.75G)."
    )
    error = read_refusal(message)
    assert isinstance(error, TooLarge) and (error.used, error.usable) == (81 * GIB, 15.75 * GIB)
    assert isinstance(read_refusal("INTERNAL: something else"), RuntimeError)


def test_topologies_are_chips_and_sides():
    assert topology.parse("v5e:16x16")[1:] == (CHIPS["v5e"], (16, 16)) and topology.parse("v5e:16x16").chips == 256
    assert topology.parse("v4:2x2x4").chips == 16
    for chip in CHIPS.values():
        assert topology.parse(chip.example).chip is chip


@pytest.mark.parametrize("name", ["v5e:3x5", "v5e:2x2x2", "v6e:4x2", "v4:2x4", "v4:4x4x2", "v5p:3x3x3", "v5e:0x0"])
def test_slices_that_do_not_exist_are_refused(name):
    with pytest.raises(ValueError, match="does not exist: .* slices are .*2x2"):
        topology.parse(name)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:16", "16x16", "v5e:2*2", "v9:2x2"])
def test_what_is_no_topology_is_refused_and_the_form_named(name):
    with pytest.raises(ValueError, match="v5e:16x16|v5e slices are"):
        topology.parse(name)


def test_topologies_and_batch_sizes_go_in_pairs():
    small, large = topology.parse("v5e:2x2"), topology.parse("v5e:4x4")
    assert pair_up(["v5e:2x2", "v5e:4x4"], ["64"]) == [(small, 64), (large, 64)]
    assert pair_up(["v5e:2x2"], ["64", "128"]) == [(small, 64), (small, 128)]
    assert pair_up(["v5e:2x2", "v5e:4x4"], ["64", "256"]) == [(small, 64), (large, 256)]
    for sizes, message in ((["64", "128", "256"], "pairs"), (["many"], "whole numbers"), (["66"], "64 or 68 would")):
        with pytest.raises(ValueError, match=message):
            pair_up(["v5e:2x2", "v5e:4x4"], sizes)


def loop_and_plan(config):
    """The loop's program of a config, lowered with its real arrays, and the plan's, lowered with shapes."""
    settings = check(config.to_dict())
    dataset = load_data(settings)
    parts = make_parts(settings, dataset.num_classes)
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings))
    shapes = jax.eval_shape(partial(parts.teacher.init, train=False), jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    built = assemble([settings], parts, dataset, asked_live(settings, parts.teacher, variables, dataset))[0]
    assert train_examples(settings) == len(dataset.train.index)
    programs = Programs([built])
    try:
        states = programs.stack([programs.begin(jax.random.key(0))])
        arguments = (states, *programs.arrays(0), jax.device_put(jnp.int32(1), programs.on_all))
        program = make_program(settings, make_mesh())
        described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), arguments)
        planned = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), program.arguments)
        assert described == planned
        return (
            lower.as_text() for lower in (programs.run_chunk.lower(*arguments), program.run_chunk.lower(*program[1]))
        )
    finally:
        programs.close()


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
    loop, plan = loop_and_plan(config)
    assert loop == plan


def test_another_method_changes_the_method_alone():
    settings = check(quickstart.get_config("run=sdd_kd").to_dict())
    kd = by_method(settings, "kd", 128)
    assert {name for name in kd if kd[name] != settings[name]} == {"method", "batch_size"}


def test_what_has_no_plan_is_refused():
    sequence = quickstart.get_config()
    with pytest.raises(ValueError, match="choose from .*sdd_kd"):
        read_settings(sequence.to_dict())
    config = quickstart.get_config("run=sdd_kd")
    config.seeds = (0, 1)
    with pytest.raises(ValueError, match="leave seeds out"):
        read_settings(config.to_dict())
    config.seeds = ()
    config.teacher.cache = "cache"
    with pytest.raises(ValueError, match="leave teacher.cache out"):
        read_settings(config.to_dict())


def test_figures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "PACKAGES", ("jax",))
    path = kept.place("program", "v5e:2x2")
    assert kept.read(path) is None
    kept.write(path, {"flops": 1.0})
    assert kept.read(path) == {"flops": 1.0} and [file.name for file in path.parent.iterdir()] == [path.name]
    assert path not in (kept.place("program", "v5e:2x4"), kept.place("another", "v5e:2x2"))
    path.write_text('{"flops":')
    assert kept.read(path) is None


def plans():
    """One that fits, at twice the operations of the other method, and one that does not."""
    v5e = topology.parse("v5e:2x2")

    def figures(method, flops):
        memory = Memory(params=GIB, optimizer=GIB, teacher=GIB, data=GIB, temporary=4 * GIB, total=8 * GIB)
        compiled = Compiled(memory, flops, 81.9e9, Collectives(3, 10_000_000, 20e6), 60.0)
        least = bound(v5e.chip, flops=flops, bytes=81.9e9, sent_bytes=20e6)
        return Figures(method, compiled, None, least, 2.5)

    fits = Plan(v5e, 512, 100, figures("sdd_kd", 39.4e12), figures("kd", 19.7e12), Largest(256, True, 2))
    refused = Figures("sdd_kd", None, TooLarge(20 * GIB, 15.75 * GIB), None, None)
    return [fits, Plan(v5e, 4096, 100, refused, None, None)]


def test_the_table_has_a_column_for_each_plan():
    text = as_text(plans())
    assert "fits 16 GiB, 8.00 free" in text and "NO: 20.00 GiB or more, 4.25 too much" in text
    assert "1024 (256 a chip, compiled)" in text and "39400.0 (2.0000)" in text
    assert "200.100" in text and "2559" in text  # 200 ms, 0.1 on the network; 512 images in 200.1 ms
    other = plans()[1]._replace(topology=topology.parse("v6e:2x2"))
    assert "32 GiB at 1638 GB/s" in as_text([plans()[0], other])


def test_json_has_every_figure():
    fits, refused = json.loads(json.dumps(as_json(plans())))
    assert fits["methods"][0]["memory_bytes"]["temporary"] == 4 * GIB and fits["largest"]["batch_size"] == 1024
    assert fits["methods"][0]["seconds"]["step"] == pytest.approx(0.2001)
    assert refused["methods"] == [
        {"method": "sdd_kd", "fits": False, "needs_bytes": 20 * GIB, "usable_bytes": 15.75 * GIB}
    ]
