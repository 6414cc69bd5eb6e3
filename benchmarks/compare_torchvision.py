"""Mask R-CNN R50-FPN at 800 x 1344, batch 1: keras_mrcnn beside torchvision and Model Garden, in turns.

    python benchmarks/compare_torchvision.py --peer-python PATH [--garden-python PATH]

The first PATH is the Python of an environment with torch and torchvision, the second of one with
tf-models-official, which only trains. What is measured stands in README.md.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys

import work

HERE = pathlib.Path(__file__).resolve().parent
OURS = "keras_mrcnn"
PEERS = ("torchvision", "model_garden")
QUIET = 0.2  # cores that others may keep busy; above it no ratio is given
MEASURED = ("seconds", "others", "peak_mib")


class Worker:
    """One framework in its own process, stopped whenever it has nothing to do."""

    def __init__(self, python, script, options):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "OMP_NUM_THREADS": str(options.threads),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [python, str(HERE / script)]
        for name in ("precision", "threads", "height", "width", "features"):
            command += [f"--{name}", str(getattr(options, name))]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()

    def run(self, command):
        """One iteration; the worker's answer as a dictionary."""
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it has ended, and no answer comes
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The worker ended at {command!r}: {' '.join(self.process.args)}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)


def compare(command, options):
    """All repeats of one command: for each side a list of the worker's answers."""
    scripts = {
        OURS: (sys.executable, "worker_keras.py"),
        "torchvision": (options.peer_python, "worker_torchvision.py"),
        "model_garden": (options.garden_python, "worker_model_garden.py"),
    }
    sides = [side for side in options.sides if command == "train" or side != "model_garden"]
    answers = {side: [] for side in sides}
    with contextlib.ExitStack() as stack:
        workers = {}
        for side in sides:  # one gets ready after the other, which is not measured
            workers[side] = stack.enter_context(Worker(*scripts[side], options))
            workers[side].run(command)
        for repeat in range(options.repeats):
            order = sides if repeat % 2 == 0 else sides[::-1]
            for side in order:
                answers[side].append(workers[side].run(command))
    return answers


def columns(sides):
    """The heads of the table's columns."""
    peers = [side for side in sides if side != OURS]
    ratios = [f"{OURS} / {side}" for side in peers]
    if len(peers) > 1:
        ratios.append(f"{OURS} / the faster")
    return [
        "",
        "precision",
        *(f"{side}, s" for side in sides),
        *ratios,
        *(f"{side}, peak MiB" for side in sides),
        "others",
    ]


def ratios(seconds, peers):
    """Our median over that of each peer, and with several over the fastest's; "-" where one is missing."""
    medians = {side: statistics.median(given) for side, given in seconds.items()}
    theirs = [medians.get(side) for side in peers]
    if len(peers) > 1:
        theirs.append(min(theirs) if all(theirs) else None)
    return [f"{medians[OURS] / each:.2f}" if each and OURS in medians else "-" for each in theirs]


def row(command, precision, answers, sides):
    """One line of the Markdown table."""
    seconds = {side: [answer["seconds"] for answer in given] for side, given in answers.items()}
    cells = [command, precision]
    for side in sides:
        if side in seconds:
            low, middle, high = min(seconds[side]), statistics.median(seconds[side]), max(seconds[side])
            cells.append(f"{middle:.3f} ({low:.3f} - {high:.3f})")
        else:
            cells.append("-")
    others = max(answer["others"] for given in answers.values() for answer in given)
    found = ratios(seconds, [side for side in sides if side != OURS])
    cells += found if others <= QUIET else ["-"] * len(found)
    cells += [str(answers[side][-1]["peak_mib"]) if side in answers else "-" for side in sides]
    cells.append(f"{others:.2f}" if others <= QUIET else f"{others:.2f}: too noisy")
    return "| " + " | ".join(cells) + " |"


def facts(answers):
    """What each side did in one iteration, without the timing; the same on all, or the run is void."""
    done = {
        side: {name: value for name, value in given[-1].items() if name not in MEASURED}
        for side, given in answers.items()
    }
    counts = [{k: v for k, v in each.items() if k != "trained_parameters"} for each in done.values()]
    if any(each != counts[0] for each in counts):
        raise RuntimeError(f"The sides did not do the same work: {done}")
    return done


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="Python of an environment with torch and torchvision")
    parser.add_argument("--garden-python", help="Python of an environment with tf-models-official")
    parser.add_argument("--commands", nargs="+", choices=work.COMMANDS, default=work.COMMANDS)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7, help="timed iterations of each side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument(
        "--sides", nargs="+", choices=(OURS, *PEERS), help="default: ours, and those whose Python is given"
    )
    parser.add_argument("--features", choices=("fpn", "c4"), default="fpn", help="c4: ours alone")
    options = parser.parse_args()
    pythons = {"torchvision": options.peer_python, "model_garden": options.garden_python}
    if options.sides is None:
        options.sides = [OURS, *(side for side in PEERS if pythons[side])]
        if len(options.sides) == 1:
            parser.error(f"--peer-python or --garden-python is needed, or --sides {OURS}")
    for side in set(options.sides).intersection(PEERS):
        if not pythons[side]:
            parser.error(f"The Python of the side {side} is needed: --peer-python or --garden-python")
        if options.features != "fpn":
            parser.error(f"{side} has no C4 here: add --sides {OURS}")
    if options.sides == ["model_garden"] and "inference" in options.commands:
        parser.error("model_garden only trains here: add --commands train")
    return options


def main():
    """Prints a Markdown table; medians of seconds an iteration, lowest and highest in brackets."""
    options = parse()
    print(
        f"R50-{options.features.upper()}, {platform.machine()}, {options.threads} threads, "
        f"{options.height} x {options.width}, batch 1"
    )
    heads = columns(options.sides)
    print("| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    done, medians = {}, {}
    for precision in options.precisions:
        for command in options.commands:
            options.precision = precision
            answers = compare(command, options)
            done[f"{command} {precision}"] = facts(answers)
            print(row(command, precision, answers, options.sides), flush=True)
            for side, given in answers.items():
                medians[command, precision, side] = statistics.median(each["seconds"] for each in given)
    for command, side in itertools.product(options.commands, PEERS):
        pair = (command, "bfloat16", OURS), (command, "float32", side)
        if all(key in medians for key in pair):
            ratio = medians[pair[0]] / medians[pair[1]]
            print(f"{command}: our bfloat16 / float32 of {side} = {ratio:.2f}")
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
