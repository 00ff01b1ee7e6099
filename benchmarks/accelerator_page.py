"""The page of `benchmarks.accelerator`, out of its lines: ratios first, then milliseconds, then shares of the peak."""

import statistics

from benchmarks import timing
from benchmarks.accelerator_cases import ARITHMETIC, BESIDE
from benchmarks.images import BATCH, HEIGHT, WIDTH
from benchmarks.right import KILLED_AT
from experiments.command_line import table

TEXTS = {
    "Right": "Errors are relative to the largest value. *highest* is float32, *default* what the device does with "
    "products of float32 if nobody asks: TF32 on NVIDIA's GPUs, bfloat16 with sums in float32 on TPUs. Golden values "
    "are those of the official code in float64 on a CPU. Beside the CPU's float32: loss, norm and largest entry of the "
    "first step's gradient at drawn weights; rounding alone moves an entry by 1e-2 where much cancels. A run killed at "
    f"step {KILLED_AT} goes on from a checkpoint; 0 is bit for bit; *the same run again* is what the device does by "
    "itself. *Deterministic* is with XLA's flag for GPUs, *compiled anew* without kept programs.",
    BESIDE: "Held against the fastest of PyTorch's in the same arithmetic: *default* lets both round products of "
    "float32 (TF32), *float32* neither, *bfloat16* is autocast there. PyTorch's step finds its batch ready on the "
    "device; ours makes it.",
    "Fast": "The first of a table is what the others are held against. Images and teacher are random, in the device's "
    "memory; a step orders, crops, flips and normalises its batch.",
    "Seeds together": "Students by SDD-KD with a cached teacher: the time of so many seeds one after the other, beside "
    "that of one program with all of them.",
    "A real run": "`sdd train` with the data in the device's memory; one seed says nothing of methods.",
    "Input": f"Images per second from JPEG files of {WIDTH} x {HEIGHT} to batches of {BATCH} at 224 on the device.",
}


def page(found, lines, skipped):
    """The page, as text."""
    parts, failed = {}, [line for line in lines if "error" in line]
    for line in lines:
        if "result" in line:
            parts.setdefault(line["part"], []).append(line)
    text = ["# On an accelerator", "", *found["machine"], f"- {found['devices']} x {found['device']}", *_notes(found)]
    if skipped:
        text += ["", "**Not measured for want of time** (the same command goes on):", ""]
        text += [f"- {part}: {name}" for part, name in skipped]
    if failed:
        text += ["", "**Failed** (the same command tries again):", ""]
        text += [f"- {line['part']}: {line['name']}: {line['error']}" for line in failed]
    for part, of in TEXTS.items():
        if part in parts:
            text += ["", f"## {part}", "", of, "", *_section(part, parts[part], found, parts)]
    took = sum(line["seconds"] for line in lines)
    return "\n".join([*text, "", f"All of it took {took / 60:.1f} minutes."]) + "\n"


def _notes(found):
    rates = ", ".join(f"{found['peaks'][name] / 1e12:.3g} ({name})" for name in ARITHMETIC)
    notes = [f"- a large product of matrices reaches {rates} TFLOP/s: the peak that shares are of"]
    if found["form"] == "small":
        notes.append("- **the small form: it shows that the program works, and its numbers say nothing**")
    return notes + ([f"- not beside PyTorch: {found['torch']}"] if found["torch"] else [])


def _section(part, lines, found, parts):
    results = [line["result"] for line in lines]
    if part == "Right":
        rows = [row for result in results for row in result]
        cells = [(*row[:2], f"{row[2]:.1e}", row[3] or "", timing.verdict(row[2], row[3])) for row in rows]
        return table(("what", "precision", "error", "at most", ""), cells)
    if part == "Seeds together":
        return table(("student", "seeds", "speed-up", "quartiles", "ms, one", "ms, all"), map(_seeds, lines))
    if part == "A real run":
        return [row for line in lines for row in _run(line)]
    if part == "Input":
        return _input(results[0], parts)
    return [row for line in lines for row in _contest(line, found)]


def _contest(line, found):
    """A table of a contest, or of starts."""
    result, title = line["result"], [f"### {line['name']}", ""]
    if "starts" in result:
        rows = [(name, *(f"{seconds:.1f}" for seconds in of)) for name, of in result["starts"].items()]
        return [*title, *table(("programs", "s to the first step", "of them compilation"), rows), ""]
    seconds, specs, about = result["seconds"], result["specs"], result["about"]
    rows, notes = [], []
    for name, spec in specs.items():
        if "error" in about[name]:
            notes.append(f"{name} does not run: {' '.join(about[name]['error'].split())[:300]}")
            continue
        beside, median = reference(name, result), statistics.median(seconds[name])
        middle, low, high = timing.ratio(seconds[name], seconds[beside])
        ratio = ("1", "") if beside == name else (f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
        flops, held = about[name].get("flops"), about[name].get("bytes")
        share = f"{flops / median / found['peaks'][spec['arithmetic']]:.1%}" if flops else ""
        memory = f"{held / 2**20:.0f}" if held else ""
        rate = f"{spec['batch'] / median:.0f}"
        rows.append((name, *ratio, f"{1000 * median:.3f}", f"{1 / median:.1f}", rate, share, memory))
    heads = ("step", "ratio", "quartiles", "ms", "steps/s", "images/s", "of the peak", "MiB")
    first = next((name for name in specs if about[name].get("layouts")), None)
    if first:
        layouts = sorted(about[first]["layouts"].items(), key=lambda of: -of[1])
        notes.append(f"Convolutions of *{first}*: " + ", ".join(f"{count} {name}" for name, count in layouts))
    return [*title, *table(heads, rows), "", *notes, *([""] if notes else [])]


def reference(name, result):
    """Whom a contestant is held against: the fastest of PyTorch in its arithmetic, or else the first."""
    specs, seconds = result["specs"], result["seconds"]
    same = [
        other
        for other in seconds
        if specs[other]["kind"] == "torch" and specs[other]["arithmetic"] == specs[name]["arithmetic"]
    ]
    return min(same, key=lambda other: statistics.median(seconds[other])) if same else next(iter(seconds))


def _seeds(line):
    result = line["result"]
    student, (one, together) = line["name"].partition(",")[0], result["specs"]
    count, seconds = result["specs"][together]["seeds"], result["seconds"]
    if together not in seconds or one not in seconds:
        return (student, count, "does not run", "", "", "")
    middle, low, high = timing.ratio([count * of for of in seconds[one]], seconds[together])
    told = (f"{1000 * statistics.median(seconds[name]):.3f}" for name in (one, together))
    return (student, count, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", *told)


def _run(line):
    result = line["result"]
    rows = [(name, f"{100 * of['accuracy']:.2f}", f"{of['seconds']:.0f}") for name, of in result["runs"].items()]
    told = f"{line['name']}: {result['examples']} images, {result['epochs']} epochs each, the teacher at "
    return [f"{told}{result['images_per_second']:.0f} images a second.", "", *table(("run", "test %", "s"), rows)]


def _input(result, parts):
    rate = statistics.median(result["rates"])
    told = [f"{result['workers']} processes: {rate:.0f} images a second ({len(result['rates'])} rounds)."]
    for line in parts.get(BESIDE, []):
        for name, seconds in line["result"]["seconds"].items():
            spec = line["result"]["specs"][name]
            if spec["kind"] == "jax" and spec["data"] == "imagenet":
                need = spec["batch"] / statistics.median(seconds)
                told.append(f"{line['name']}, {name}, takes {need:.0f}: the pipeline feeds {rate / need:.2f} of it.")
    return told
