"""The stages of a session and the commands of at most ten minutes that they make up."""

from dataclasses import dataclass

from bench.commit import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """command, rehearsal: Python's arguments on a GPU, and on a CPU with small shapes; {folder} is the stage's own,
    {records} where its records go, {minutes} how long it may begin something new, {workers} pytest-xdist's arguments
    where that is installed. seconds: its box, in which it is ended.
    interpreted: whether a rehearsal runs the Triton kernels in Triton's interpreter."""

    name: str
    seconds: int
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    interpreted: bool = False


_SMALL = ("--device", "cpu", "--tiny")


def _tests(*arguments: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={folder}/tests.xml", *arguments)


def _part(name: str, seconds: int) -> Stage:
    command = ("-m", "bench.suite", name, "--out", "{records}", "--minutes", "{minutes}")
    return Stage(name=name, seconds=seconds, command=command, rehearsal=(*command, *_SMALL, "--seconds", "0.05"))


_PROFILE = ("-m", "bench.scripts.profile_step", "--out", "{records}", "--minutes", "{minutes}")
_CAPS = ("-m", "bench.scripts.memory_caps", "--out", "{records}")
# Those files alone that hold any: importing the others takes longer than the tests.
_GPU_TESTS = _tests(
    "-m",
    "gpu",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("tests/*/test_*.py")
        if path.parent.name != "kernels" and "@pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ),
)

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="probe",
            seconds=60,
            command=("-m", "bench.session.probe", "--out", "{records}"),
            rehearsal=("-m", "bench.session.probe", "--out", "{records}", "--device", "cpu"),
            interpreted=True,
        ),
        # A rehearsal takes the interpreter through one file; make test takes it through all of them.
        Stage(
            name="kernel-tests",
            seconds=240,
            command=_tests("{workers}", "tests/kernels"),
            rehearsal=_tests("{workers}", "tests/kernels/test_token_logps.py"),
            interpreted=True,
        ),
        Stage(name="gpu-tests", seconds=100, command=_GPU_TESTS, rehearsal=_GPU_TESTS),
        Stage(name="profile", seconds=100, command=_PROFILE, rehearsal=(*_PROFILE, *_SMALL)),
        _part("step", 540),
        _part("attention", 200),
        _part("kernels", 360),
        Stage(name="caps", seconds=240, command=_CAPS, rehearsal=(*_CAPS, "--rehearse")),
        _part("memory", 540),
        _part("scaling", 540),
    )
}

# Each command begins with the probe and has nine and a half minutes; its last stage gets what the others leave of them.
COMMANDS = {
    "first": ("probe", "kernel-tests", "gpu-tests", "profile", "step"),
    "second": ("probe", "step"),
    "third": ("probe", "attention", "kernels"),
    "fourth": ("probe", "caps", "memory"),
    "fifth": ("probe", "scaling"),
}
COMMAND_SECONDS = 570
SLOWER = 6  # a rehearsal's boxes in those of a GPU: two cores that others use too
