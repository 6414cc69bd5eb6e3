"""Mask R-CNN R50-FPN at 800 x 1344, batch 1: keras_mrcnn beside torchvision, in turns.

    python benchmarks/compare_torchvision.py --peer-python PATH

PATH is the Python of an environment with torch and torchvision. What is measured stands in README.md.
"""

import argparse
import contextlib
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
SIDES = ("keras_mrcnn", "torchvision")
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
    scripts = {"keras_mrcnn": (sys.executable, "worker_keras.py")}
    scripts["torchvision"] = (options.peer_python, "worker_torchvision.py")
    answers = {side: [] for side in options.sides}
    with contextlib.ExitStack() as stack:
        workers = {}
        for side in options.sides:  # one gets ready after the other, which is not measured
            workers[side] = stack.enter_context(Worker(*scripts[side], options))
            workers[side].run(command)
        for repeat in range(options.repeats):
            order = options.sides if repeat % 2 == 0 else options.sides[::-1]
            for side in order:
                answers[side].append(workers[side].run(command))
    return answers


def row(command, precision, answers):
    """One line of the Markdown table, and the facts of the work for the line below it."""
    seconds = {side: [answer["seconds"] for answer in given] for side, given in answers.items()}
    cells = [command, precision]
    for side in SIDES:
        if side in seconds:
            low, middle, high = min(seconds[side]), statistics.median(seconds[side]), max(seconds[side])
            cells.append(f"{middle:.3f} ({low:.3f} - {high:.3f})")
        else:
            cells.append("-")
    others = max(answer["others"] for given in answers.values() for answer in given)
    ratio = "-"
    if len(seconds) == len(SIDES) and others <= QUIET:
        medians = [statistics.median(seconds[side]) for side in SIDES]
        ratio = f"{medians[0] / medians[1]:.2f}"
    cells.append(ratio)
    cells += [str(answers[side][-1]["peak_mib"]) if side in answers else "-" for side in SIDES]
    cells.append(f"{others:.2f}" if others <= QUIET else f"{others:.2f}: too noisy")
    return "| " + " | ".join(cells) + " |"


def facts(answers):
    """What each side did in one iteration, without the timing; the same on both, or the run is void."""
    done = {
        side: {name: value for name, value in given[-1].items() if name not in MEASURED}
        for side, given in answers.items()
    }
    counts = [{k: v for k, v in each.items() if k != "trained_parameters"} for each in done.values()]
    if counts[0] != counts[-1]:
        raise RuntimeError(f"The two sides did not do the same work: {done}")
    return done


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="Python of an environment with torch and torchvision")
    parser.add_argument("--commands", nargs="+", choices=work.COMMANDS, default=work.COMMANDS)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7, help="timed iterations of each side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="to try one alone")
    parser.add_argument("--features", choices=("fpn", "c4"), default="fpn", help="c4: ours alone")
    options = parser.parse_args()
    if "torchvision" in options.sides and not options.peer_python:
        parser.error("--peer-python is needed for the torchvision side")
    if "torchvision" in options.sides and options.features != "fpn":
        parser.error("torchvision has no C4: add --sides keras_mrcnn")
    return options


def main():
    """Prints a Markdown table; medians of seconds an iteration, lowest and highest in brackets."""
    options = parse()
    print(
        f"R50-{options.features.upper()}, {platform.machine()}, {options.threads} threads, "
        f"{options.height} x {options.width}, batch 1"
    )
    columns = ["", "precision", *(f"{side}, s" for side in SIDES), "ours / theirs"]
    columns += [*(f"{side}, peak MiB" for side in SIDES), "others"]
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    done, medians = {}, {}
    for precision in options.precisions:
        for command in options.commands:
            options.precision = precision
            answers = compare(command, options)
            done[f"{command} {precision}"] = facts(answers)
            print(row(command, precision, answers), flush=True)
            for side, given in answers.items():
                medians[command, precision, side] = statistics.median(each["seconds"] for each in given)
    for command in options.commands:
        pair = (command, "bfloat16", SIDES[0]), (command, "float32", SIDES[1])
        if all(key in medians for key in pair):
            ratio = medians[pair[0]] / medians[pair[1]]
            print(f"{command}: our bfloat16 / their float32 = {ratio:.2f}")
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
