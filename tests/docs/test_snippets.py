"""README and docs say what is so: snippets run, commands parse, links lead somewhere, messages are printed so."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from typer.main import get_command

from serving.cli import app
from serving.config import AppSettings
from streaming.dead_letters import read_dead_letters
from streaming.schema import Recommendation
from tests.eventually import eventually
from tests.running_application import RunningApplication

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PACKAGES = ("pinrec", "streaming", "serving")

CLI = get_command(app)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            yield Block(page.name, text[: found.start()].count("\n") + 2, found[1], found[2])


BLOCKS = list(_blocks())
README_PYTHON = [block for block in BLOCKS if block.page == "README.md" and block.language == "python"]
CURLS = [block for block in BLOCKS if block.language == "sh" and block.text.startswith("curl ")]
# Commands stand one to a line in blocks, and between backticks in the text.
PROSE = {page.name: re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE) for page in PAGES}
INLINE = [(name, found[1]) for name, text in PROSE.items() for found in re.finditer(r"`([^`\n]+)`", text)]
LINES = [
    *((str(block), line) for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()),
    *INLINE,
]


# What needs an application


def needs_application(test: Any) -> Any:
    return pytest.mark.broker(pytest.mark.serve(pytest.mark.timeout(300)(test)))


@pytest.fixture(scope="module")
def live(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApplication]:
    """An application that answers, on topics of its own."""
    application = RunningApplication(tmp_path_factory.mktemp("an application of the docs"), broker)
    try:
        application.start()
        yield application
    finally:
        application.stop()


def _for(live: RunningApplication, text: str) -> str:
    """The snippet with this application's addresses, topics and token in place of the usual ones."""
    kafka = live.settings.kafka
    return (
        text.replace('KafkaSettings(bootstrap="127.0.0.1:9092")', f"KafkaSettings(**{kafka.model_dump()!r})")
        .replace("http://127.0.0.1:8000", live.file.url)
        .replace("127.0.0.1:9092", str(kafka.bootstrap))
        .replace('"pinrec.events"', f'"{kafka.events}"')
        .replace("$(cat .pinrec/admin-token)", str(live.stack.token))
    )


def _run(live: RunningApplication, block: Block) -> str:
    """What the snippet prints, run in a process of its own as a reader would."""
    text = _for(live, block.text)
    if "get_app_handle" in text:  # it is for code inside the cluster
        address = json.loads((live.settings.state.root / "cluster.json").read_text())["address"]
        text = f"import ray\nray.init({address!r}, namespace='serve', log_to_driver=False)\n{text}"
    done = subprocess.run(
        [sys.executable, "-"], input=text, capture_output=True, text=True, timeout=90, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_application
@pytest.mark.parametrize("block", README_PYTHON, ids=str)
def test_python_runs(block: Block, live: RunningApplication) -> None:
    printed = _run(live, block)
    assert printed.strip() or "print(" not in block.text


@needs_application
@pytest.mark.parametrize("block", CURLS, ids=str)
def test_curl_is_answered(block: Block, live: RunningApplication) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = _for(live, block.text).replace("curl -sS ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


@needs_application
def test_dead_letters_are_read_as_the_page_says(live: RunningApplication) -> None:
    (block,) = (block for block in BLOCKS if block.page == "failures.md" and block.language == "python")
    kafka = live.settings.kafka
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    producer.produce(kafka.events, key="ada", value=b'{"user_id": "ada", "item": "misspelt"}')
    assert producer.flush(10) == 0
    eventually(lambda: read_dead_letters(kafka))
    assert "misspelt" in _run(live, block)


# What needs none


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(CLI))


def _parse(line: str) -> tuple[str, ...]:
    """Parse a `pinrec ...` line as the program would, without running it; the command it names."""
    words = shlex.split(line.partition(" > ")[0])
    assert words.pop(0) == "pinrec"
    for length in (2, 1):
        path = tuple(words[:length])
        if path in COMMANDS:
            COMMANDS[path].make_context(" ".join(path), words[length:])
            return path
    raise AssertionError(f"no such command: {line}")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_holds_an_example_of_the_command(path: tuple[str, ...]) -> None:
    (example,) = re.findall(r"Example: (pinrec .+)", COMMANDS[path].help or "")
    assert _parse(example) == path


NAMES = {path[:length] for path in COMMANDS for length in (1, 2)}
PINREC_LINES = [(place, line) for place, line in LINES if re.match(r"pinrec [a-z]+( |$)", line)]


@pytest.mark.parametrize(("place", "line"), PINREC_LINES)
def test_commands_and_options_exist(place: str, line: str) -> None:
    if tuple(line.split()[1:]) in NAMES:
        return  # the name of a command in a sentence
    _parse(line)


@pytest.mark.parametrize(("place", "line"), [(place, line) for place, line in LINES if line.startswith("make ")])
def test_make_knows_target_and_variables(place: str, line: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in line.split()[1:]:
        name, equals, _ = word.partition("=")
        assert f"$({name})" in makefile or f"$(if $({name})" in makefile if equals else f"\n{name}:" in makefile, word


def test_the_lock_command_is_that_of_the_makefile() -> None:
    (line,) = (line for _, line in LINES if "uv pip compile" in line)
    recipe = (ROOT / "Makefile").read_text().replace("\\\n", " ").replace("$(BIN)", ".venv/bin")
    assert line in re.sub(r"[ \t]+", " ", recipe)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


FILES = [
    (place, text)
    for place, text in INLINE
    if re.fullmatch(r"(pinrec|streaming|serving|tests|docs|deploy|benchmarks)/[\w/.]*(::\w+)?", text)
]


@pytest.mark.parametrize(("place", "text"), FILES)
def test_files_and_tests_that_are_named_exist(place: str, text: str) -> None:
    path, _, test = text.partition("::")
    assert (ROOT / path).exists()
    assert f"def {test}" in (ROOT / path).read_text() if test else True


PARTS = "|".join(AppSettings.model_fields)
SETTINGS = [(place, text) for place, text in INLINE if re.fullmatch(rf"({PARTS})\.[a-z_]+(: .+)?", text)]


@pytest.mark.parametrize(("place", "text"), SETTINGS)
def test_settings_that_are_named_exist(place: str, text: str) -> None:
    part, name = text.partition(":")[0].split(".")
    if part in PACKAGES and (ROOT / part / f"{name}.py").exists():
        return  # a module
    assert name in AppSettings.model_fields[part].annotation.model_fields  # type: ignore[union-attr]


def test_the_answer_that_is_shown_is_one() -> None:
    (block,) = (block for block in BLOCKS if block.language == "json")
    Recommendation.model_validate_json(block.text)


def _templates() -> Iterator[tuple[int, re.Pattern[str]]]:
    """Every text in the code that has words in it, as (length of what is fixed, pattern)."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts = [word for part in re.split(r"%[a-z]", node.value) for word in (part, None)][:-1]
                else:
                    continue
                fixed = sum(len(str(part)) for part in parts if part)
                if fixed >= 6:
                    yield fixed, re.compile("".join(".+" if part is None else re.escape(str(part)) for part in parts))


TEMPLATES = [pattern for _, pattern in sorted(_templates(), key=lambda pair: -pair[0])]
MESSAGES = [
    (str(block), line)
    for block in BLOCKS
    if block.page == "failures.md" and block.language == "text"
    for line in block.text.splitlines()
]


@pytest.mark.parametrize(("place", "message"), MESSAGES)
def test_messages_are_printed_so(place: str, message: str) -> None:
    # A fault in a log begins with its place, a refusal with its field.
    left = re.sub(r"^<path>, line <n>, column \w+: |^\w+: ", "", message)
    for template in TEMPLATES:
        left = template.sub(" ", left, count=1)
    assert not re.search(r"\w{2}", re.sub(r"<[^>]*>", " ", left)), f"not in the code: {left!r}"
