"""What a user can get wrong in a config: every field, combinations, config files. One line, exit code 2, no folder."""

import re
import subprocess
import sys

import pytest
from absl import flags
from commands import ROOT, call

from sdd_jax.commands import train
from sdd_jax.config import FIELDS, read

ANY = "tests/any_config.py"
TEXT, FLOAT, LIST = "no such value", 1.5, [[1, 2]]


def wrong_values(field):
    """Values of another type, out of range or unknown."""
    wrong = {"a dictionary in a tuple": ({"a": 1},), "bytes": b"1"}
    if not field.optional:
        wrong["None"] = None
    if field.kind is str:
        wrong |= {"a number": 3, "a flag": True}
        if field.known:
            wrong |= {"an unknown name": TEXT, "no name": "", "in capitals": field.known[0].upper()}
    else:
        wrong |= {"text": TEXT, "not a number": float("nan"), "infinite": float("inf"), "no number": ""}
        wrong["a flag" if field.kind is not bool else "a number"] = field.kind is not bool or 1
    if field.kind is tuple:
        wrong |= {"half": (1.5,), "text in a tuple": ("1",), "a flag in a tuple": (True,), "nested": ((1, 2),)}
        wrong |= {"too small": (int(field.least) - 1,)}
    if field.kind is int:
        wrong |= {"half": FLOAT, "a tuple": (1, 2)}
    if field.kind in (int, float):
        lower = max(field.least, field.above)
        wrong |= {"too small": lower - 1} | ({"the bound itself": lower} if field.above == lower else {})
        wrong |= {"too large": field.below} if field.below < float("inf") else {}
        wrong["a complex number"] = 1j
    return wrong


def literal(value):
    return {"nan": "1e400 - 1e400", "inf": "1e400"}.get(repr(value), repr(value))


BY_FIELD = [(name, kind, value) for name, field in FIELDS.items() for kind, value in wrong_values(field).items()]
LITERAL = [case for case in BY_FIELD if repr(case[2]) != "nan"]  # which has no literal


def refused(tmp_path, *arguments, command="train"):
    """The one line of a command that is refused and makes no folder."""
    line = call(command, *arguments, f"--workdir={tmp_path}/run").refused()
    assert not (tmp_path / "run").exists() and line.startswith("sdd: ")
    return line.removeprefix("sdd: ")


ALLOWED = r"must be|must name|known are|known:|greater than|at least|expected|should be|go together|goes with"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_another_type_or_out_of_range_is_named(tmp_path, name):
    for field, kind, value in LITERAL:
        if field == name:
            line = refused(tmp_path, f"--config={ANY}:{{{name!r}: {literal(value)}}}")
            assert line.startswith(name) and re.search(ALLOWED, line, re.I), (kind, line)
            shown = repr(value if kind != "too small" or FIELDS[name].kind is not tuple else value)
            assert shown in line or re.sub(r"[()\[\],]", "", shown) in line, (kind, line)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_refused_on_the_command_line_too(tmp_path, name):
    field = FIELDS[name]
    given = {int: ["one", "1.5", "", "1,2"], float: ["hot", "", "nan", "inf"], tuple: ["a,b", "1.5", "1,,x"]}
    given[bool] = ["maybe", "2", ""]
    given = given.get(field.kind, ["no_such"] if field.known else [])
    for text in given:
        line = refused(tmp_path, f"--config={ANY}", f"--config.{name}={text}")
        assert name in line, line
        assert text in line or repr(text) in line or "must be" in line, line


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.optional])
def test_a_field_that_may_be_unset_is_unset_by_none_and_set_again(monkeypatch, name):
    read_as, field = [], FIELDS[name]
    value = (
        "kd"
        if name == "loss.base"
        else {int: "3", float: str(min(2.5, field.below / 2)), bool: "True", str: (*field.known, "a")[0]}[field.kind]
    )
    unset = "kd" if name == "loss.base" else "None"  # the method's
    monkeypatch.setattr(train, "main", lambda: read_as.append(read(flags.FLAGS.config)[name]))
    for typed in ([value], [value, "none"], ["none", value]):
        overrides = [f"--config.{name}={text}" for text in typed]
        assert call("train", f"--config={ANY}", *overrides, "--workdir=unused").code == 0
    assert [str(one) for one in read_as] == [value, unset, value]


def test_there_are_many_cases():
    assert len(LITERAL) > 300


# What does not go together, each field allowed by itself.
TOGETHER = {
    "seed and seeds": ({"seed": 1, "seeds": (1, 2)}, "seed or seeds, not both"),
    "a seed twice": ({"seeds": (1, 1)}, r"seeds must differ, got \(1, 1\)"),
    "a seed of 33 bits": ({"seed": 2**33}, r"below 2\^32"),
    "plain with a teacher": ({"argument": {}, "method": "plain"}, "'plain' goes with teacher 'none'.*'resnet14'"),
    "no teacher": ({"argument": {}, "model.teacher": "none"}, "'plain' goes with teacher 'none'"),
    "another method than the argument's": ({"method": "kd"}, "choose it in the config's argument.*method=kd"),
    "another preset than the argument's": ({"preset": "paper"}, "argument.*preset=paper"),
    "an unknown student": ({"argument": {}, "model.student": "resnet9"}, "model.student: .*'resnet9'.*'resnet8'"),
    "an unknown teacher": ({"argument": {}, "model.teacher": "resnet9"}, "model.teacher: .*'resnet9'.*'resnet8'"),
    "no student": ({"argument": {}, "model.student": ""}, "model.student: unknown model ''"),
    "a stem that is none": ({"model.stem": "large"}, "'large'.*it has: cifar"),
    "a student's own code that is not there": ({"argument": {}, "model.student": "no_module:f"}, "no_module"),
    "a base loss of another method": ({"loss.base": "dkd"}, "loss.base: the method 'kd' has kd, got 'dkd'"),
    "a base loss that is none": ({"argument": {}, "method": "own", "loss.base": "kd"}, "MODULE:FUNCTION, got 'kd'"),
    "a base loss without its module": ({"argument": {}, "method": "own", "loss.base": "no_mod:f"}, "No module.*no_mod"),
    "a base loss of no function": ({"argument": {}, "method": "own", "loss.base": "math:pi"}, "math:pi.*got 3.14"),
    "a base loss of other arguments": ({"argument": {}, "method": "own", "loss.base": "json:dumps"}, "json:dumps"),
    "scales that do not start with 1": ({"sdd.scales": (2, 4)}, r"start with 1.*\(2, 4\)"),
    "no scales": ({"sdd.scales": ()}, "sdd.scales"),
    "a scale twice": ({"sdd.scales": (1, 2, 2)}, r"sdd.scales.*\(1, 2, 2\)"),
    "a scale above the nested grid": ({"sdd.scales": (1, 8)}, "scale above 4 needs pooling='direct'"),
    "momentum of one": ({"optim.momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
    "milestones after the end": ({"optim.schedule": "step", "optim.milestones": (99,)}, "below the run's 40 epochs"),
    "milestones out of order": ({"optim.schedule": "step", "optim.milestones": (9, 3)}, r"increase.*\(9, 3\)"),
    "float64 without its switch": ({"model.dtype": "float64"}, "JAX_ENABLE_X64=1"),
    "a warm-up of the rate that lasts": ({"optim.rate_warmup_epochs": 40}, "before the run's 40 epochs.*got 40"),
    "RandAugment in memory": ({"data.randaugment": (2, 9)}, r"digits is held in memory.*data.randaugment.*\(2, 9\)"),
    "RandAugment without its magnitude": ({"data.randaugment": (2,)}, r"number of operations.*such as 2,9; got \(2,\)"),
    "RandAugment too strong": ({"data.randaugment": (2, 11)}, r"at most 10, such as 2,9; got \(2, 11\)"),
    "nobody to mix with": ({"data.mixup": 0.2, "batch_size": 1}, "mix two images of a batch: batch_size is 1"),
    "mixed images in a memory": ({"method": "crd", "argument": {}, "loss.base": None, "loss.options": {},
                                  "data.cutmix": 1.0}, "'crd' remembers every example.*data.cutmix"),
    "a cache of mixed images": ({"teacher.cache": "/nowhere", "data.mixup": 0.2}, "mixtures of two: data.mixup 0.2"),
    "parts that do not divide the batch": ({"optim.accumulate_steps": 7}, "64 images are not a multiple of 7 parts"),
    "a trace that ends before it begins": ({"profile_steps": (20, 10)}, r"such as 10,20; got \(20, 10\)"),
    "a trace without an end": ({"profile_steps": (20,)}, "such as 10,20"),
    "an unknown set": ({"data.name": "digit"}, "data.name: .*'digit'.*known are digits"),
    "a set of TFDS without a name": ({"data.name": "tfds:"}, "data.name"),
    "a path for what has none": ({"data.path": "/nowhere", "model.teacher": "none", "method": "plain", "argument": {},
                                  "loss.options": {}},
                                 "digits come with sdd_jax and have no path, got '/nowhere'"),
    "another number of classes": ({"data.num_classes": 11}, "digits has 10 classes, data.num_classes says 11"),
    "a size for images in memory": ({"data.image_size": 64}, "held in memory as it is.*image_size"),
    "a crop for images in memory": ({"data.augment": "resize_crop"}, "held in memory as it is.*augment"),
    "more images than there are": ({"data.train_examples": 10**6, "model.teacher": "none", "method": "plain",
                                    "argument": {}, "loss.options": {}}, "1000000"),
    "a cache of what no cache holds": ({"method": "crd", "argument": {}, "teacher.cache": "/nowhere"}, "teacher"),
    "a room that is a number": ({"optim": 3}, "config.*'optim'"),
    "a field too many": ({"optim.learning_rat": 0.1}, "'optim.learning_rat'; the closest is 'optim.learning_rate'"),
    "a room too many": ({"extra": {"a": 1}}, "'extra.a'"),
    "a number of another room": ({"loss": {"base": "kd"}}, "config lacks the field 'loss.distill_weight'"),
    "an empty room": ({"data": {}}, "config lacks the field 'data.augment'"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_fields_that_do_not_go_together_are_named(tmp_path, case):
    overrides, message = TOGETHER[case]
    line = refused(tmp_path, f"--config={ANY}:{overrides!r}")
    assert re.search(message, line), line


# The text of a config file, and what is said of it; FILE is its path.
RETURNS = "from ml_collections import ConfigDict\ndef get_config(argument=None):\n    return "
FILES = {
    "does not parse": ("def get_config(:\n", "FILE:1: invalid syntax"),
    "is not text": (b"\xff\xfe\x00\x01", "FILE.*null bytes"),
    "is empty": ("", "FILE defines no function get_config"),
    "is another file": ("runs:\n  - a\n", "FILE:1: invalid syntax"),
    "is JSON": ("{}", "FILE defines no function get_config"),
    "raises": ("raise RuntimeError('boom')", r"FILE failed with RuntimeError: boom \(FILE:1\)"),
    "raises in its function": ("def get_config(a=None):\n    return 1 / 0", r"ZeroDivisionError.*\(FILE:2\)"),
    "asserts": ("def get_config(a=None):\n    assert a", r"FILE failed with AssertionError.*\(FILE:2\)"),
    "misses a key": ("def get_config(a=None):\n    return {}['there']", r"KeyError: 'there' \(FILE:2\)"),
    "misses an attribute": ("import math\ndef get_config(a=None):\n    return math.none", r"AttributeError.*:3"),
    "imports what is not there": ("import nothing_there", r"No module named 'nothing_there' \(FILE:1\)"),
    "opens what is not there": ("open('/nowhere/a')", r"FILE failed with FileNotFoundError: .*/nowhere/a' \(FILE:1\)"),
    "refuses": (RETURNS + "int('four')", "invalid literal.*'four'"),
    "returns nothing": ("def get_config(a=None):\n    pass", "FILE: get_config must return a ConfigDict, got None"),
    "returns a list": (RETURNS + "[1]", r"get_config must return a ConfigDict, got \[1\]"),
    "returns a dictionary": (RETURNS + "{'seed': 1}", "get_config must return a ConfigDict, got {'seed': 1}"),
    "returns an empty config": (RETURNS + "ConfigDict()", "config lacks the field"),
    "takes no argument": ("def get_config():\n    pass", "FILE:x=1 failed with TypeError: get_config.. takes 0"),
    "has a sequence without runs": (RETURNS + "ConfigDict({'sequence': ('a',)})", "a config with a sequence holds"),
    "names another run": (RETURNS + "ConfigDict({'sequence': ('a',), 'runs': {'b': {}}})", "each of the runs once"),
    "names a run twice": (RETURNS + "ConfigDict({'sequence': ('a', 'a'), 'runs': {'a': {}}})", "each of the runs once"),
    "has an empty run": (RETURNS + "ConfigDict({'sequence': ('a',), 'runs': {'a': {}}})", "config lacks the field"),
    "has a run of another kind": (RETURNS + "ConfigDict({'sequence': ('a',), 'runs': {'a': 3}})", "each be a config"),
    "has runs of another kind": (RETURNS + "ConfigDict({'sequence': ('a',), 'runs': ('a',)})", "a config with a sequ"),
    "has a sequence of numbers": (RETURNS + "ConfigDict({'sequence': 3, 'runs': {}})", "a config with a sequence"),
    "has a teacher of another kind": (
        RETURNS + "ConfigDict({'sequence': ('a',), 'runs': {'a': {'teacher': 3}}})", "no field 'teacher'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_config_file_that_is_none_says_what_is_wrong_with_it_and_where(tmp_path, case):
    content, message = FILES[case]
    path = tmp_path / "a config.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(tmp_path, f"--config={path}" + (":x=1" if case == "takes no argument" else ""))
    assert re.search(message.replace("FILE", re.escape(str(path))), line), line


PLACES = {
    "is not there": ("configs/quickstar.py", "there is no config file configs/quickstar.py"),
    "is not there, with an argument": ("configs/quickstar.py:run=kd", "there is no config file configs/quickstar.py$"),
    "is a folder": ("configs", "there is no config file configs, and no config of that name; the closest is"),
    "has no name": ("", "--config must name a config or a file, got an empty name"),
    "has another argument": ("configs/quickstart.py:run=kds", "unknown run 'kds'; known are all, teacher, plain, kd"),
    "has an argument without a value": ("configs/cifar100.py:student", "'student': expected NAME=VALUE"),
    "has an argument twice": ("configs/cifar100.py:student=vgg8,student=vgg8", "names student twice"),
    "has an unknown argument": ("configs/cifar100.py:studen=vgg8", "NAME among teacher, student"),
    "has an unknown method": ("configs/cifar100.py:method=sdd-kd", "unknown 'sdd-kd'; the closest is 'sdd_kd'"),
    "has an unknown preset": ("configs/cifar100.py:preset=thesis", "unknown preset 'thesis'; known are released"),
}


@pytest.mark.parametrize("command", ["train", "cache", "plan"])
@pytest.mark.parametrize("case", PLACES)
def test_a_config_file_that_is_not_there_or_asked_for_another_is_named(tmp_path, case, command):
    file, message = PLACES[case]
    if command == "plan":
        line = call(command, f"--config={file}", "--topology=v5e:2x4").refused()
    else:
        line = refused(tmp_path, f"--config={file}", command=command)
    assert re.search(message, line), line


IN_PROCESSES = [
    ("train", "--config=configs/quickstar.py", "--workdir=DIR"),
    ("train", f"--config={ANY}:{{'epochs': 1.5}}", "--workdir=DIR"),
    ("train", "--config=configs/quickstart.py:run=plain", "--config.loss.options.temperature=hot", "--workdir=DIR"),
    ("export", "--workdir=DIR"),
]


@pytest.mark.slow
def test_processes_say_the_same(tmp_path):
    """That the other cases are run inside this process changes nothing of what is said."""
    started = []
    for case in IN_PROCESSES:
        arguments = [argument.replace("DIR", f"{tmp_path}/run") for argument in case]
        command = [sys.executable, "-m", "sdd_jax", *arguments]
        pipe = subprocess.PIPE
        started.append((arguments, subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)))
    for arguments, process in started:
        out, err = process.communicate(timeout=120)
        assert call(*arguments) == (process.returncode, out, err) and process.returncode == 2
